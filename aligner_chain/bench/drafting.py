"""How long our decoder thinks about its drafts, apart from what verifying them takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from aligner_chain.bench.measure import sample
from aligner_chain.engines.drafting import Drafter

if TYPE_CHECKING:
    from aligner_chain.bench.decoders import Decoder
    from aligner_chain.bench.workloads import Case


def drafting_ms(decoder: Decoder, case: Case) -> float:
    """Milliseconds of CPU per forward, in a decoding of its own, since the clock on every call costs something."""
    with _clocked("__init__", "propose", "advance") as spent:
        forwards = sample(decoder, case).forwards
    return 1000 * sum(spent) / forwards


@contextmanager
def _clocked(*names: str) -> Iterator[list[float]]:
    """The seconds of every call of the drafter's methods."""
    spent: list[float] = []
    before = {name: getattr(Drafter, name) for name in names}
    for name, method in before.items():
        setattr(Drafter, name, _timed(method, spent))
    try:
        yield spent
    finally:
        for name, method in before.items():
            setattr(Drafter, name, method)


def _timed(method: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        begun = time.thread_time()
        try:
            return method(*args, **kwargs)
        finally:
            spent.append(time.thread_time() - begun)

    return timed
