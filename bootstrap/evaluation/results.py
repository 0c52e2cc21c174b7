"""What a gate decided, on what, and how a person is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

Verdict = Literal["promote", "hold", "reject"]
"""`reject`: shown to be worse, or a limit is broken. `hold`: the evidence does not decide. `promote`: shown to be fit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateResult:
    """What a gate decided and on what: `bound` is the interval's end that decides, `threshold` what it had to reach.

    `figure` is the estimate over `n` cases: a change (-1 to 1), a share (0 to 1) or a ratio. `measured`, `found`,
    `required` and `remedy` (what would change the decision) are for a person; `needed` is how many cases a decision would
    take in all, None where more of them would not help or none are missing. `passed` and `reason` follow from the rest.
    """

    name: str
    decision: Verdict
    figure: float
    bound: float
    threshold: float
    n: int
    measured: str
    found: str
    required: str
    remedy: str = ""
    needed: int | None = None
    passed: bool = field(init=False)
    reason: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "passed", self.decision == "promote")
        object.__setattr__(self, "reason", f"{self.found}; {self.required}")

    @classmethod
    def of(cls, figures: Mapping[str, Any]) -> GateResult:
        """The gate that `dataclasses.asdict` made into a dict, as it lies in a ledger."""
        return cls(**{one.name: figures[one.name] for one in fields(cls) if one.init and one.name in figures})


def verdict_of(low: float, high: float, *, touching: bool = True) -> Verdict:
    """What an interval says whose ends lie `low` and `high` above what is required; `touching` lets 0 pass."""
    if low > 0 or (touching and low >= 0):
        return "promote"
    return "reject" if high < 0 else "hold"


def explain(gate: GateResult) -> str:
    """The gate for a person: what was measured, on how many, what came out, what was required and what would change it.

    Lines without a line break at the end, ready for a terminal.
    """
    rows = {
        "measured": f"{gate.measured}, {gate.n:,} cases",
        "found": gate.found,
        "required": gate.required,
        "to change it": gate.remedy or remedy(gate.decision, gate.n, gate.needed),
    }
    return "\n".join([f"{gate.name}: {gate.decision}", *(f"  {label:<13} {text}" for label, text in rows.items())])


def remedy(decision: Verdict, n: int, needed: int | None) -> str:
    """What would change a decision, in words, where the gate has nothing better to say."""
    if n == 0:
        return "cases: there were none"
    if decision == "promote":
        return "nothing is missing"
    if decision == "reject":
        return "another candidate: more cases like these would only refuse this one more surely"
    if needed is None:
        return "a clearer difference: at these rates more cases alone will hardly decide it"
    return f"about {about(needed):,} cases in all, {about(needed) - n:,} more, if the rates stay as they are"


def about(count: int) -> int:
    """A count rounded up to two digits, since more of them would pretend to know it; below 100 it stays."""
    step = int(10 ** max(len(str(count)) - 2, 0))
    return -(-count // step) * step
