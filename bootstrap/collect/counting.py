"""What became of the corrections that were submitted."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True, slots=True)
class Counters:
    """What became of the corrections that were submitted to one collector, in one process.

    Always `submitted == written + refused + failed + sampled_out + waiting`: nothing is in two of them, and what waits is
    in memory or in the log. What the log holds of it is `spilled - replayed`.

    Attributes:
        submitted: calls of `submit`.
        written: in the store, on whichever way.
        refused: not taken: the collector was closed or its memory full, or the redactor raised.
        failed: taken, and no store can hold it.
        sampled_out: unchanged answers that the sampling left out.
        waiting: not yet in the store: in memory or in the log.
        spilled: put into the log; in durable mode every one, else on overflow and while the store was away.
        replayed: of the spilled ones those that left the log again for the store.
        undurable: in durable mode, those that the log could not take and memory did.
        adopted: records of processes that have ended, put into the store by this one; none of them was submitted here.
        torn: lines of those processes that nobody can read, since a kill cut them off before their `submit` returned.
    """

    submitted: int = 0
    written: int = 0
    refused: int = 0
    failed: int = 0
    sampled_out: int = 0
    waiting: int = 0
    spilled: int = 0
    replayed: int = 0
    undurable: int = 0
    adopted: int = 0
    torn: int = 0

    def __str__(self) -> str:
        """Those that are not 0, for a person."""
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        return ", ".join(f"{name} {count}" for name, count in known.items() if count) or "nothing submitted"
