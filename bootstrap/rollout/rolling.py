"""Promotion and rollback where the Aligner runs on servers; where it does not, those of the registry itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection

from aligner_chain.engines.server.wire import base_urls
from bootstrap.database.fences import Fence
from bootstrap.database.leases import Leases
from bootstrap.errors import RolloutError
from bootstrap.registry import PairVersion, Registry, Servers
from bootstrap.registry.promoting import Expected, Unchecked
from bootstrap.rollout.readiness import ready
from bootstrap.rollout.retiring import GRACE_S, retire

KEEP = 1
"""Earlier versions that stay loaded, so that a rollback has nothing to load."""


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where a promotion's Aligner shall run: by default where the served one does.

    `urls` are the servers; `home` is the registry's folder as they see it, by default as this machine does or as the servers
    before did. `in_process`: on no server, each application loads it.
    """

    urls: tuple[str, ...] = ()
    home: str | None = None
    in_process: bool = False

    def servers(self, registry: Registry) -> Servers | None:
        """The servers; None where there are none. Raises `ConfigurationError` for what is no address."""
        event = registry.event()
        before = event.servers if event else None
        if self.in_process or not (self.urls or before):
            return None
        urls = base_urls(self.urls) if self.urls else before.urls if before else ()
        return Servers(
            urls=tuple(dict.fromkeys(urls)), home=self.home or (before.home if before else str(registry.home))
        )


def promote(
    registry: Registry,
    pair: PairVersion,
    where: Where | None = None,
    *,
    expected: Expected = Unchecked.ANY_PAIR,
    fence: Fence | None = None,
    keep: int = KEEP,
    grace_s: float = GRACE_S,
    say: Callable[[str], None] = lambda _: None,
) -> PairVersion:
    """Serves a registered pair, after every server has shown that it runs the pair's Aligner.

    The same pair once more loads it where a server has lost it, as one does that was started again.

    Args:
        registry: the registry.
        pair: the pair.
        where: the servers. Default: those of the served pair, or none.
        expected: the pair that must be served until now.
        fence: is asked in the transaction that promotes.
        keep: earlier versions that stay loaded on the servers.
        grace_s: seconds without a request after which another one is unloaded.
        say: hears what was unloaded.

    Raises:
        RolloutError: a server does not run the version, or another rollout is at work. What is served is as it was.
        RegistryError: as `Registry.promote`.
    """
    servers = (where or Where()).servers(registry)
    if servers is None:
        return registry.promote(pair, expected=expected, fence=fence)
    with _alone(registry) as lease:
        with ready(registry, pair.aligner, servers):
            promoted = registry.promote(pair, expected=expected, fence=_Both(lease, fence), servers=servers)
        retire(registry, keep, grace_s, say)
    return promoted


def rollback(registry: Registry) -> PairVersion:
    """Serves what was served before, on the servers of then, after each has shown that it still runs it, or does again.

    Raises:
        RolloutError: a server does not run the version, or another rollout is at work. What is served is as it was.
        RegistryError: as `Registry.rollback`.
    """
    served, before = registry.served(), registry.event_before()
    if before.servers is None:
        return registry.rollback(expected=served)
    with _alone(registry) as lease, ready(registry, before.pair.aligner, before.servers):
        return registry.rollback(expected=served, fence=lease)


@contextmanager
def _alone(registry: Registry) -> Iterator[Fence]:
    """One rollout at a time: another one could unload what this one has just found loaded."""
    lease = Leases(registry.database).take("rollout")
    if lease is None:
        raise RolloutError(
            f"Another process promotes to servers from {registry.home}, or was killed there within the last minute. What is "
            "served is as it was. Wait for it, then look what is served:  aligner-bootstrap registry list"
        )
    with lease.held():
        yield lease


class _Both:
    """Two fences as one."""

    def __init__(self, *fences: Fence | None) -> None:
        self._fences = fences

    def check(self, connection: Connection) -> None:
        for fence in self._fences:
            if fence is not None:
                fence.check(connection)
