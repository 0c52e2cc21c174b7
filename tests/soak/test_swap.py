"""Ten thousand requests while pairs are promoted and rolled back twenty times: none fails, and each gets one whole version."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pairs_that_tell import CORRECTIONS, Promoter, Tally, write_models

from aligner_chain.langchain import AlignerCorrector, LocalChatModel
from aligner_chain.shared import catch_up, following, hold

pytestmark = pytest.mark.soak

REQUESTS, SWAPS, THREADS, TASKS = 10_000, 20, 8, 24


def ask_all(chain: Any, stop: threading.Event) -> list[float]:
    """Asks until told to stop; the seconds of each request."""
    took = []
    while not stop.is_set():
        began = time.monotonic()
        chain.invoke("ask")
        took.append(time.monotonic() - began)
    return took


async def ask_in_tasks(chain: Any, stop: threading.Event) -> list[float]:
    took: list[float] = []

    async def one() -> None:
        while not stop.is_set():
            began = time.monotonic()
            await chain.ainvoke("ask")
            took.append(time.monotonic() - began)

    await asyncio.gather(*(one() for _ in range(TASKS)))
    return took


def test_no_request_fails_and_each_is_of_one_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ALIGNER_MODEL", raising=False)
    promoter, tally = Promoter(tmp_path / "home", write_models(tmp_path / "models")), Tally()
    promoter.promote(1)
    chain = LocalChatModel.served(max_new_tokens=8) | AlignerCorrector(on_correction=tally)
    chain.invoke("ask")
    before, engines, stop = following(), [], threading.Event()
    began = time.monotonic()
    with ThreadPoolExecutor(THREADS + 1) as pool:
        askers = [pool.submit(ask_all, chain, stop) for _ in range(THREADS)]
        askers.append(pool.submit(asyncio.run, ask_in_tasks(chain, stop)))
        try:
            for swap in range(1, SWAPS + 1):
                assert tally.wait_for(REQUESTS * swap // (SWAPS + 1), timeout=600)
                # Every third time back to the pair before, else another one of the four.
                pair = promoter.registry.rollback() if swap % 3 == 0 else promoter.promote(swap % 4 + 1)
                assert catch_up(120)
                assert tally.wait_for(tally.pairs[str(pair.number)] + 10, str(pair.number))
                with hold(None) as aligner:
                    engines.append(weakref.ref(aligner.engine))
                del aligner
            assert tally.wait_for(REQUESTS, timeout=600)
        finally:
            stop.set()
        took = sorted(second for asker in askers for second in asker.result(120))
    seconds, after = time.monotonic() - began, following()
    gc.collect()
    alive = sum(one() is not None for one in engines)
    report = (
        f"{len(tally.corrections)} requests in {seconds:.0f} s, {after.switched - before.switched} switches, "
        f"{after.mismatched - before.mismatched} mismatches, median {took[len(took) // 2] * 1e3:.0f} ms, "
        f"p99 {took[len(took) * 99 // 100] * 1e3:.0f} ms, longest {took[-1] * 1e3:.0f} ms, {alive} engines left"
    )
    sys.stdout.write(f"\n{report}\n")  # seen with -s
    assert promoter.faults(tally.corrections) == []
    assert len(tally.corrections) >= REQUESTS
    assert (after.switched - before.switched, after.failed) == (SWAPS, before.failed)
    # Only what was on its way at a switch can be of two pairs.
    assert after.mismatched - before.mismatched <= SWAPS * (THREADS + TASKS)
    assert alive == 1


FORKED = """
import os, sys
from pathlib import Path
from aligner_chain import Exchange
from aligner_chain.shared import catch_up, hold

def text():
    with hold(None) as aligner:
        return aligner.correct([Exchange.of("q", "bad")])[0].text

print(text(), flush=True)
if not (child := os.fork()):
    print(text(), flush=True)
    Path(sys.argv[1]).rename(sys.argv[2])
    print(catch_up(60), text(), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(catch_up(60), text(), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_loads_and_follows_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ALIGNER_MODEL", raising=False)
    promoter = Promoter(tmp_path / "home", write_models(tmp_path / "models"))
    promoter.promote(1)
    served, later = promoter.registry.home / "served.json", tmp_path / "later.json"
    first = served.read_text()
    promoter.promote(2)
    later.write_text(served.read_text())
    served.write_text(first)
    command = [sys.executable, "-c", FORKED, str(later), str(served)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    before, after = CORRECTIONS[:2]
    assert done.stdout.split() == [before, before, "True", after, "True", after], done.stderr
