"""What came of a round, for programs and for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bootstrap.evaluation import GateResult
from bootstrap.registry import PairVersion
from bootstrap.rounds.values import Round


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """How a round ended: `promoted`, `rejected` or `held` (a gate refused a candidate). Shares are between 0 and 1."""

    number: int
    status: str
    reason: str
    pair: PairVersion | None
    gates: tuple[GateResult, ...]
    pairs: int
    dropped: Mapping[str, int]
    verified: int
    annotated: int
    seconds: float

    @classmethod
    def of(cls, ended: Round, served: PairVersion | None, seconds: float) -> RoundResult:
        """The result of a round that has ended; `seconds` is how long this process worked at it."""
        data = ended.result("freeze")["pairs"]
        return cls(
            number=ended.number,
            status=ended.status,
            reason=ended.reason,
            pair=served if ended.pair is not None else None,
            gates=tuple(map(GateResult.of, ended.gates)),
            pairs=data["rows"],
            dropped=data["dropped"],
            verified=ended.result("triples").get("verified", 0),
            annotated=ended.result("triples").get("annotated", 0),
            seconds=seconds,
        )

    def as_dict(self) -> dict[str, Any]:
        """The result ready for JSON."""
        pair = self.pair and {"number": self.pair.number, "aligner": self.pair.aligner.identity}
        names = ("number", "status", "reason", "pairs", "verified", "annotated", "seconds")
        rest = {name: getattr(self, name) for name in names}
        return {**rest, "dropped": dict(self.dropped), "pair": pair, "gates": [asdict(gate) for gate in self.gates]}
