"""What a proxy is told at its start."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from aligner_chain.aligner import Aligner
from aligner_chain.errors import ConfigurationError
from aligner_chain.exchange import Correction
from aligner_chain.policy import Policy


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one client may cost, all in the units of the names.

    Args:
        body_bytes: A greater request is refused with 413.
        answer_bytes: Of an upstream's answer that must be held to be corrected; a greater one is a 502.
        header_bytes: Request line and headers; more is a 400.
        in_flight: Requests at a time; one more is refused with 429.
        body_s: Seconds in which a request's body must have come, else 408.
        request_s: Seconds for all of a request, else 504.
        grace_s: Seconds that running requests have to end after SIGTERM.
    """

    body_bytes: int = 32 * 2**20
    answer_bytes: int = 32 * 2**20
    header_bytes: int = 64 * 2**10
    in_flight: int = 256
    body_s: float = 60.0
    request_s: float = 900.0
    grace_s: float = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a proxy is told at its start.

    Args:
        upstream: Base URL of the model, as its own clients would be given it: "https://api.openai.com/v1".
        aligner: An `Aligner`, a folder or a hub id. None: what `ALIGNER_MODEL` names, else what `$ALIGNER_HOME` serves, which may
            follow a promotion between two requests.
        on_error: What a client gets where a correction failed: "raise" an error, or "pass_through" the upstream's answer.
        on_correction: Told of every `Correction` before its answer is sent.
        policy: What of the corrections is served. None: the Aligner's own.
        criteria: What to judge by, in the Aligner's own words. None: what it was trained for.
        strength: From 0 (no answer is corrected) to 1 (all are). None: as calibrated.
        timeout: Seconds for the correction of one answer. None: without end.
        upstream_s: Seconds that the upstream may be silent.
        only_chat: Refuse every path but chat completions and the list of models, so that no answer passes uncorrected.
        keep_alive_s: Seconds after which a stream that has nothing to say yet gets a comment.
        limits: What one client may cost.

    Raises:
        ConfigurationError: The upstream is not a URL that can be used.
    """

    upstream: str
    aligner: Aligner | str | Path | None = None
    on_error: Literal["raise", "pass_through"] = "raise"
    on_correction: Callable[[Correction], object] | None = None
    policy: Policy | None = None
    criteria: Sequence[str] | None = None
    strength: float | None = None
    timeout: float | None = 60.0
    upstream_s: float = 600.0
    only_chat: bool = False
    keep_alive_s: float = 15.0
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        parts = urlsplit(self.upstream)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ConfigurationError(
                f"{_shown(self.upstream)} is not the base URL of a model. Give it as its own clients have it, such as "
                "https://api.openai.com/v1 or http://127.0.0.1:8000/v1."
            )
        if parts.username is not None:
            raise ConfigurationError(
                "The upstream's URL holds a name or a password, which would take the place of each client's own key. Leave it "
                "out: the Authorization header of every request is passed on as it is."
            )


def function_at(name: str) -> Callable[[Correction], object]:
    """The function that `package.module:function` names; also a method of an object in the module.

    Raises:
        ConfigurationError: It cannot be imported, or is nothing that can be called.
    """
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"{name} cannot be imported: {error}.\nName a function as package.module:function. A module in the working folder is "
            f"found with  PYTHONPATH=. aligner-chain serve ..."
        ) from error
    if not callable(found):
        raise ConfigurationError(f"{name} is a {type(found).__name__}, which cannot be called with a Correction.")
    function: Callable[[Correction], object] = found
    return function


def _shown(url: str) -> str:
    """The URL without what may be a password."""
    return repr(url.rpartition("@")[2])
