"""The models of this process: each is loaded once, whoever asks for it, and the served ones follow promotions.

A named Aligner stays loaded. The served pair is held for a request at a time (`hold`, `hold_upstream`): it may be another one at the
next request, and never within one. `aligner_chain.switching` says how that goes.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from aligner_chain import telemetry
from aligner_chain.aligner import Aligner
from aligner_chain.errors import AlignerError
from aligner_chain.given import not_an_aligner
from aligner_chain.policy import Policy
from aligner_chain.serving import Kind, Served, ServedModel, home, served_model
from aligner_chain.session import Session
from aligner_chain.switching import FAILED, SWITCHED, Follower, Lease, Part

if TYPE_CHECKING:
    from aligner_chain.engines.huggingface import HuggingFaceEngine

Source = Aligner | str | Path | None
"""Which Aligner to use: that one, the one of a folder or hub id, or the one that `ALIGNER_MODEL` names or a registry serves."""

_ALIGNER = Part("aligner")
_LOADED: WeakValueDictionary[str, Aligner] = WeakValueDictionary()
_NAMED: dict[str, Aligner] = {}
_LOADING, _CHOOSING = threading.Lock(), threading.Lock()


@dataclass(frozen=True, kw_only=True, slots=True)
class Following:
    """How this process follows promotions: the pairs in memory, and what happened since it started.

    `pair` answers; `draining` is the one before, while a request still runs on it. Both are None where none is in memory.
    `switched` counts the pairs that took over, `failed` those that could not be loaded, `mismatched` the corrections of answers
    by another upstream than the one that was promoted with their Aligner.
    """

    pair: str | None
    draining: str | None
    switched: int
    failed: int
    mismatched: int


def as_source(given: object) -> Source:
    """What was given as an Aligner. Raises `TypeError` for what is none."""
    if given is None or isinstance(given, Aligner | str | Path):
        return given
    raise not_an_aligner(given)


def shared_aligner(source: str | Path) -> Aligner:
    """The Aligner of a folder or hub id, which stays loaded. Raises the errors of `Aligner.from_pretrained`."""
    key = _key(source)
    if (aligner := _NAMED.get(key)) is None or not _is_open(aligner):
        aligner = _loaded(key, _NAMED)
    return aligner


@contextmanager
def hold(source: Source) -> Iterator[Aligner]:
    """The Aligner for one request; it stays the same version, and open, until the block is left.

    Raises the errors of `resolve_aligner` and of `Aligner.from_pretrained`.
    """
    if isinstance(source, Aligner):
        yield source
    elif name := source or _configured():
        yield shared_aligner(name)
    else:
        with _follower().lease(_ALIGNER) as lease:
            yield _promoted(lease)


@asynccontextmanager
async def ahold(source: Source) -> AsyncIterator[Aligner]:
    """`hold` without blocking the event loop while something is loaded."""
    if isinstance(source, Aligner):
        yield source
    elif name := source or _configured():
        yield await asyncio.to_thread(shared_aligner, name)
    else:
        with await _follower().alease(_ALIGNER) as lease:
            yield _promoted(lease)


@contextmanager
def hold_if_loaded(source: Source) -> Iterator[Aligner | None]:
    """`hold`, or None where the Aligner is not in memory; it is never loaded, and nothing is raised."""
    if isinstance(source, Aligner):
        yield source
    elif name := source or _configured():
        yield _NAMED.get(_key(name))
    elif (lease := _lease_at_hand(_ALIGNER)) is None:
        yield None
    else:
        with lease:
            yield _promoted(lease)


@contextmanager
def hold_upstream(device: str, dtype: str) -> Iterator[tuple[HuggingFaceEngine, str]]:
    """The engine of the served upstream for one request, and its identity. As `hold`."""
    with _follower().lease(Part("upstream", device, dtype)) as lease:
        yield lease.model, _identity(lease)


@asynccontextmanager
async def ahold_upstream(device: str, dtype: str) -> AsyncIterator[tuple[HuggingFaceEngine, str]]:
    """`hold_upstream` without blocking the event loop while something is loaded."""
    with await _follower().alease(Part("upstream", device, dtype)) as lease:
        yield lease.model, _identity(lease)


def served_now(kind: Kind) -> ServedModel:
    """The served upstream or Aligner that the next request gets, which may be one before that of `served.json`.

    Raises the errors of `served_model`.
    """
    follower = _follower()
    in_memory = follower.served
    found = in_memory.model(kind) if in_memory else None
    return found or served_model(kind, follower.home)


def aligner_now() -> str | None:
    """The folder or hub id of the Aligner that is used where none is given; None where there is none."""
    try:
        return _configured() or str(served_now("aligner").path)
    except AlignerError:
        return None


def following() -> Following:
    """How this process follows promotions, for a page of its health."""
    follower = _follower()
    pair, draining = follower.served, follower.draining
    return Following(
        pair=pair.pair if pair else None,
        draining=draining.pair if draining else None,
        switched=telemetry.counted(SWITCHED),
        failed=telemetry.counted(FAILED),
        mismatched=telemetry.counted(telemetry.MISMATCHED),
    )


def catch_up(timeout: float | None = None) -> bool:
    """Looks at `served.json` at once and waits until its pair answers, or was found to be broken.

    Args:
        timeout: seconds; None: without end.

    Returns:
        Whether that came to its end in time.
    """
    return _follower().catch_up(timeout)


def configured(
    aligner: Aligner, policy: Policy | None, criteria: Sequence[str] | None, strength: float | None
) -> Aligner:
    """The Aligner under what a component was given beside it; itself where that is nothing."""
    told = {"criteria": criteria, "strength": strength}
    changes: dict[str, Any] = {name: value for name, value in told.items() if value is not None}
    if policy is None and not changes:
        return aligner
    return aligner.under(replace(policy or aligner.policy, **changes))


class Holding:
    """What takes answers through the Aligner of a component's settings, one version of it for each block of work.

    The base of both faces' `Correcting`. `_session`, while there is one, has its Aligner already.
    """

    _settings: Any  # a component of a face, with `aligner`, `policy`, `criteria` and `strength`
    _session: Session | None

    @contextmanager
    def _using(self) -> Iterator[Aligner]:
        """The Aligner, which stays the same version until the block is left; in a session it is the session's."""
        if self._session is not None:
            yield self._session.aligner
            return
        with hold(self._settings.aligner) as aligner:
            yield self._configured(aligner)

    @asynccontextmanager
    async def _ausing(self) -> AsyncIterator[Aligner]:
        """The same without blocking the event loop while it is loaded."""
        if self._session is not None:
            yield self._session.aligner
            return
        async with ahold(self._settings.aligner) as aligner:
            yield self._configured(aligner)

    def _configured(self, aligner: Aligner) -> Aligner:
        return configured(aligner, self._settings.policy, self._settings.criteria, self._settings.strength)


class _Models:
    """Loads and frees the models of served pairs; one that is in use by its name, too, is shared and stays."""

    def __init__(self, folder: Path) -> None:
        self._home = folder

    def open(self, served: Served, part: Part) -> Any:
        model = served_model(part.kind, self._home, served)
        folder, server = model.path, model.server
        if part.kind == "aligner" and server is not None:
            return Aligner.from_server(server.urls, server.model, checkpoint=folder)
        if part.kind == "aligner":
            return _loaded(_key(folder))
        from aligner_chain.engines.huggingface import shared_engine

        return shared_engine(folder, device=part.device, dtype=part.dtype, stays=False)

    def warm(self, model: Aligner | HuggingFaceEngine) -> None:
        model.warm_up()

    def close(self, model: Aligner | HuggingFaceEngine) -> None:
        if isinstance(model, Aligner):
            _let_go(model)
            return
        from aligner_chain.engines.huggingface import let_go

        let_go(model)


def _loaded(key: str, held: dict[str, Aligner] | None = None) -> Aligner:
    """The Aligner of a key, from memory if it is there, and from now on in `held`."""
    with _LOADING:
        aligner = _LOADED.get(key)
        if aligner is None or not _is_open(aligner):
            aligner = Aligner.from_pretrained(key)
        _LOADED[key] = aligner
        if held is not None:
            held[key] = aligner
        return aligner


def _let_go(aligner: Aligner) -> None:
    with _LOADING:
        if any(aligner is one for one in _NAMED.values()):
            return
        for key in [key for key, one in _LOADED.items() if one is aligner]:
            del _LOADED[key]
    aligner.close()


def _is_open(aligner: Aligner) -> bool:
    return not getattr(aligner.engine, "closed", False)


def _promoted(lease: Lease) -> Aligner:
    aligner: Aligner = lease.model
    return aligner.promoted_in(lease.served)


def _identity(lease: Lease) -> str:
    upstream = lease.served.upstream
    return upstream.identity if upstream else ""


def _lease_at_hand(part: Part) -> Lease | None:
    try:
        return _follower().at_hand(part)
    except AlignerError:
        return None


def _configured() -> str | None:
    return os.environ.get("ALIGNER_MODEL") or None


def _key(source: str | Path) -> str:
    folder = Path(source).expanduser()
    return str(folder.resolve()) if folder.is_dir() else str(source)


_followers: dict[Path, Follower] = {}  # at most one: what another home serves is let go


def _follower() -> Follower:
    folder = home()
    follower = _followers.get(folder)
    if follower is not None:
        return follower
    with _CHOOSING:  # not the lock of those who load, for which an event loop must never wait
        if folder not in _followers:
            _followers.clear()
            _followers[folder] = Follower(folder, _Models(folder))
        return _followers[folder]


def _after_fork() -> None:
    """A forked child has none of the threads that run the models, and loads its own."""
    global _LOADING, _CHOOSING
    _LOADING, _CHOOSING = threading.Lock(), threading.Lock()
    _followers.clear()
    _LOADED.clear()
    _NAMED.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
