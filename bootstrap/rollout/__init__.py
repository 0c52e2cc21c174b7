"""Promotion to model servers: every server has a version, and has shown it, before one application is sent there.

    replicas   one server as its operator sees it: what it runs, loading and unloading an adapter, who still asks for one
    readiness  a version on every server, or on none
    retiring   adapters that nobody asks for any more
    rolling    promote and rollback: readiness, then one event of the registry, then retiring

A version is served under its own name, `aligner@3`, and a name never changes its meaning. An adapter (a PEFT folder) is loaded
on servers that run its base; a whole model is a server of its own, which the operator has started. What is served turns with
the registry's event, as ever: applications follow `served.json`, each between two requests.
"""

from __future__ import annotations

from bootstrap.rollout.rolling import Where, promote, rollback

__all__ = ["Where", "promote", "rollback"]
