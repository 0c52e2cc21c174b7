"""What collecting costs: docs/collecting.md."""

from __future__ import annotations

from cells import lines
from stored import Figures

WAYS = {
    "default, without redaction": "default",
    "default, without redaction, identified": "default, records with message, run, subject and tenant",
    "default, with redaction": "default, with redaction",
    "durable, without redaction": "durable",
    "durable, with redaction": "durable, with redaction",
    "durable, fsync, without redaction": "durable, fsync",
    "durable, fsync, with redaction": "durable, fsync, with redaction",
}


def submit(found: Figures) -> list[str]:
    rows = [[name, _time(one["median_us"]), _time(one["p99_us"])] for name, one in found["submit"].items()]
    return lines(["", "`submit`, median", "p99"], rows)


def records(found: Figures) -> list[str]:
    rows = []
    for name, told in WAYS.items():
        one = found["records_into_sqlite"][name]
        rows.append([told, f"{round(one['records_per_s'], -2):,.0f}", *(_time(one[f"{of}_cpu_us"]) for of in CPU)])
    return lines(["into SQLite", "records a second", "CPU of `submit`", "CPU of the writer"], rows)


CPU = ("submit", "writer")


def _time(us: float) -> str:
    """Two digits at least of a time in microseconds."""
    if us >= 1000:
        return f"{us / 1000:.1f} ms"
    return f"{us:.0f} µs" if us >= 10 else f"{us:.1f} µs"
