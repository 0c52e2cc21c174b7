"""What collecting costs a chain, and how much a collector brings to a SQLite file.

    python benchmarks/collect.py [--submits 5000] [--records 40000] [--rounds 3]

One thread submits chat answers of some 200 characters. `submit` is timed call by call: while the writer is at work, while
the store is away, in durable mode, and with fsync. The rate is that of `submit` to the end of `flush`, over all records.
Of the rounds the best counts, since whatever else runs on the machine only ever adds. Prints a table and writes
benchmarks/results/collect.json. Lines: at most 20 microseconds at the median by default, with the store up or away; at
least 20,000 records a second without redaction.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import sqlalchemy

from aligner_chain import __version__
from aligner_chain.exchange import Correction, Exchange, edits_between
from bootstrap.collect import Collector
from bootstrap.collect.collector import DEFAULT_REDACTOR
from bootstrap.store import CorrectionStore

RESULTS = Path(__file__).parent / "results" / "collect.json"

MODES: dict[str, dict[str, Any]] = {
    "default": {},
    "durable": {"durable": True},
    "durable, fsync": {"durable": True, "fsync": True},
}


def corrections(count: int) -> list[Correction]:
    answer = "You press the bad button and then wait for an hour. " * 4
    text = answer.replace("bad", "good")
    edits = edits_between(answer, text)
    return [
        Correction(
            exchange=Exchange.of(f"How do I do number {number} in the third version?", answer),
            text=text,
            outcome="corrected",
            edits=edits,
            scores={"keep": 0.2},
            aligner="tiny@1",
            template="aligner-chain/1",
        )
        for number in range(count)
    ]


def submit_us(folder: Path, count: int, *, away: bool, **mode: Any) -> dict[str, float]:
    """Microseconds of one call: the median, and the 99th of a hundred."""
    store = CorrectionStore(folder / "corrections.db")
    if away:
        store.path.rename(folder / "away.db")
    times = []
    with Collector(store, redact=None, capacity=count + 1, **mode) as collector:
        for correction in corrections(count):
            start = time.perf_counter()
            collector.submit(correction)
            times.append((time.perf_counter() - start) * 1e6)
    times.sort()
    return {"median_us": statistics.median(times), "p99_us": times[int(count * 0.99)]}


def rate(folder: Path, count: int, **mode: Any) -> float:
    """Records a second, from the first submit until all are in the store."""
    store = CorrectionStore(folder / "corrections.db")
    batch = corrections(count)
    with Collector(store, capacity=count + 1, **mode) as collector:
        start = time.perf_counter()
        for correction in batch:
            collector.submit(correction)
        assert collector.flush()
        seconds = time.perf_counter() - start
    assert store.count() == count
    return count / seconds


def best(rounds: int, measure: Any, key: Any) -> Any:
    """The best of the rounds, each in a new folder."""
    found = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(Path(folder)))
    return min(found, key=key)


def commit() -> str:
    told = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=RESULTS.parents[1], capture_output=True, text=True, check=False
    )
    return told.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--submits", type=int, default=5000)
    parser.add_argument("--records", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    calls = {
        f"{name}, store {'away' if away else 'up'}": best(
            given.rounds,
            lambda folder, away=away, mode=mode: submit_us(folder, given.submits, away=away, **mode),
            lambda one: one["median_us"],
        )
        for name, mode in MODES.items()
        for away in (False, True)
    }
    redactors = {"without redaction": None} | ({"with redaction": DEFAULT_REDACTOR} if DEFAULT_REDACTOR else {})
    rates = {
        f"{name}, {how}": best(
            given.rounds,
            lambda folder, mode=mode, redact=redact: rate(folder, given.records, redact=redact, **mode),
            lambda one: -one,
        )
        for name, mode in MODES.items()
        for how, redact in redactors.items()
    }
    medians = [calls[f"default, store {state}"]["median_us"] for state in ("up", "away")]
    result = {
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "sqlalchemy": sqlalchemy.__version__,
        "aligner_chain": __version__,
        "commit": commit(),
        "submits": given.submits,
        "records": given.records,
        "submit": calls,
        "records_per_s": rates,
        "lines": {"submit_us": 20, "records_per_s": 20_000},
        "met": {
            "submit": max(medians) <= 20,
            "records": rates["default, without redaction"] >= 20_000,
        },
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))


def table(result: dict[str, Any]) -> str:
    lines = [
        f"submit, {name:<30} median {us['median_us']:8.1f}   p99 {us['p99_us']:8.1f} us"
        for name, us in result["submit"].items()
    ]
    lines += [f"into SQLite, {name:<32} {rate:8.0f} records/s" for name, rate in result["records_per_s"].items()]
    lines.append(f"lines: submit <= 20 us, records >= 20,000/s; met: {result['met']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
