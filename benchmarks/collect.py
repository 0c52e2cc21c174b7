"""What collecting costs a chain, and how much a collector brings to a SQLite file.

    python benchmarks/collect.py [--submits 5000] [--records 40000] [--rounds 3]

One thread submits chat answers of some 200 characters. `submit` is timed call by call: while the writer is at work, while
the store is away, in durable mode, and with fsync. The rate is that of `submit` to the end of `flush`, over all records,
with the capacity that a collector has by default. The thread waits while half of it is taken, so that by default nothing goes
to the log. Beside it stands the processor time of the thread and of the writer for each record, and the rate that both would
reach together on one core that nothing else runs on, with a disk that nobody waits for. "identified" records have a message, a
run, a subject and a tenant, for each of which there is an index.

Of the rounds the best figure counts, each by itself, since whatever else runs on the machine only ever adds. Prints a table
and writes benchmarks/results/collect.json. Lines: at most 20 microseconds at the median by default, with the store up or
away; at least 20,000 records a second without redaction.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import sqlalchemy
from stored import commit, write

from aligner_chain import __version__
from aligner_chain.exchange import Correction, Exchange, edits_between
from bootstrap.collect import Collector
from bootstrap.collect.collector import DEFAULT_REDACTOR
from bootstrap.store import CorrectionStore

CAPACITY = 10_000  # a collector's default
LOOK = 100  # the counters are looked at once in so many records
LINE = "default, without redaction"

MODES: dict[str, dict[str, Any]] = {
    "default": {},
    "durable": {"durable": True},
    "durable, fsync": {"durable": True, "fsync": True},
}


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way of bringing records to a store."""

    collector: Mapping[str, Any]
    identified: bool = False


def corrections(count: int, *, identified: bool = False) -> list[Correction]:
    answer = "You press the bad button and then wait for an hour. " * 4
    text = answer.replace("bad", "good")
    edits = edits_between(answer, text)
    return [
        Correction(
            exchange=replace(
                Exchange.of(f"How do I do number {number} in the third version?", answer),
                **(identifiers(number) if identified else {}),
            ),
            text=text,
            outcome="corrected",
            edits=edits,
            scores={"keep": 0.2},
            aligner="tiny@1",
            template="aligner-chain/1",
        )
        for number in range(count)
    ]


def identifiers(number: int) -> dict[str, str]:
    message, run = (str(UUID(bytes=hashlib.md5(f"{kind} {number}".encode()).digest())) for kind in ("message", "run"))
    return {"message_id": message, "run_id": run, "subject": f"user-{number % 1000}", "tenant": f"tenant-{number % 10}"}


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


def rate(folder: Path, count: int, way: Way) -> dict[str, float]:
    """Records a second, from the first submit until all are in the store, and microseconds of a processor for each."""
    store = CorrectionStore(folder / "corrections.db")
    batch = corrections(count, identified=way.identified)
    with Collector(store, **way.collector) as collector:
        start, used, submitting = time.perf_counter(), time.process_time(), time.thread_time()
        for at, correction in enumerate(batch):
            collector.submit(correction)
            while at % LOOK == 0 and collector.counters.waiting > CAPACITY // 2:
                time.sleep(0.001)
        assert collector.flush()
        seconds = time.perf_counter() - start
        used, submitting = time.process_time() - used, time.thread_time() - submitting
        assert way.collector.get("durable") or not collector.counters.spilled
    assert store.count() == count
    submit, writer = submitting / count * 1e6, (used - submitting) / count * 1e6
    return {"seconds": seconds / count, "submit_cpu_us": submit, "writer_cpu_us": writer, "cpu_us": submit + writer}


def rates(count: int, way: Way, rounds: int) -> dict[str, float]:
    found = least(rounds, lambda folder: rate(folder, count, way))
    told = {name: found[name] for name in ("submit_cpu_us", "writer_cpu_us")}
    return {"records_per_s": 1 / found["seconds"], **told, "records_per_s_of_a_free_core": 1e6 / found["cpu_us"]}


def least(rounds: int, measure: Callable[[Path], dict[str, float]]) -> dict[str, float]:
    """The least of each figure over the rounds, each in a new folder."""
    found = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(Path(folder)))
    return {name: min(one[name] for one in found) for name in found[0]}


def ways() -> dict[str, Way]:
    redactors = {"without redaction": None} | ({"with redaction": DEFAULT_REDACTOR} if DEFAULT_REDACTOR else {})
    found = {
        f"{name}, {how}": Way(collector={**mode, "redact": redact})
        for name, mode in MODES.items()
        for how, redact in redactors.items()
    }
    return found | {"default, without redaction, identified": Way(collector={"redact": None}, identified=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--submits", type=int, default=5000)
    parser.add_argument("--records", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    calls = {
        f"{name}, store {'away' if away else 'up'}": least(
            given.rounds,
            lambda folder, away=away, mode=mode: submit_us(folder, given.submits, away=away, **mode),
        )
        for name, mode in MODES.items()
        for away in (False, True)
    }
    found = {name: rates(given.records, way, given.rounds) for name, way in ways().items()}
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
        "records_into_sqlite": found,
        "lines": {"submit_us": 20, "records_per_s": 20_000},
        "met": {
            "submit": max(medians) <= 20,
            "records": found[LINE]["records_per_s"] >= 20_000,
            "records, of a free core": found[LINE]["records_per_s_of_a_free_core"] >= 20_000,
        },
    }
    write("collect", result)
    print(table(result))


def table(result: dict[str, Any]) -> str:
    lines = [
        f"submit, {name:<30} median {us['median_us']:8.1f}   p99 {us['p99_us']:8.1f} us"
        for name, us in result["submit"].items()
    ]
    lines += [
        f"into SQLite, {name:<40} {one['records_per_s']:7,.0f} records/s   of a free core "
        f"{one['records_per_s_of_a_free_core']:7,.0f}   "
        f"CPU us: submit {one['submit_cpu_us']:5.1f}, writer {one['writer_cpu_us']:5.1f}"
        for name, one in result["records_into_sqlite"].items()
    ]
    lines.append(f"lines: submit <= 20 us, records >= 20,000/s; met: {result['met']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
