"""What an Aligner is let do: which answers it sees, which of its corrections are served, and what is served instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from aligner_chain.checkpoint import AlignerMetadata
from aligner_chain.checks import Checks
from aligner_chain.errors import AlignerError, ConfigurationError
from aligner_chain.exchange import Correction, Exchange, edits_between
from aligner_chain.inspectors import Inspector, passes, scored, worst
from aligner_chain.thoughts import spoken

Scores = Mapping[str, float]
_NONE: Scores = MappingProxyType({})
_ROUNDING = 1e-9
"""By how much the difference of two scores may be off that are as far apart as a margin says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What inspectors said of one answer before the Aligner saw it. Answers that `passed` are served as they are."""

    scores: Scores = field(default_factory=lambda: _NONE)
    passed: bool = False
    error: AlignerError | None = None


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The rules by which answers are corrected. A policy of its own is given with `Aligner.under`.

    Args:
        checks: What a correction must not damage.
        criteria: What to judge by, where a call does not say so. (): what the Aligner was trained for.
        strength: The score that an answer needs more than to stay as it is, where a call does not say so (`Aligner.correct`).
        before: Inspectors that see every answer first. One that passes all their criteria is served without the Aligner.
        thresholds: By criterion the score above which an answer passes; for others those hold that `aligner-chain calibrate`
            stored. A criterion without one lets nothing pass.
        after: Inspectors that see a correction beside its answer. It is served only where they score both by the same
            criteria, and none of these falls by more than `margin`.
        margin: From 0 to 1.
        refusal: What is served in the place of an answer that would stay as it is although a criterion of the inspectors
            rates it below `floor`. "": the answer itself.
        floor: From 0 to 1.
        thoughts: Whether answers begin with what the upstream thought, as `<think> ... </think>`, since its server does not
            take that out. It then stays as it is, unseen by the Aligner, inspectors and checks, and what follows is corrected.
            Not without need: who can make the upstream write these marks decides what is not looked at.

    Raises:
        ConfigurationError: A number is not between 0 and 1, there is a refusal that nothing decides on, or an inspector stands
            where a list of them belongs.
    """

    checks: Checks = field(default_factory=Checks)
    criteria: Sequence[str] = ()
    strength: float | None = None
    before: Sequence[Inspector] = ()
    thresholds: Scores = field(default_factory=lambda: _NONE)
    after: Sequence[Inspector] = ()
    margin: float = 0.0
    refusal: str = ""
    floor: float = 0.0
    thoughts: bool = False

    def __post_init__(self) -> None:
        strength = {} if self.strength is None else {"strength": self.strength}
        given = {"margin": self.margin, "floor": self.floor, **strength, **self.thresholds}
        if wrong := {name: value for name, value in given.items() if not 0 <= value <= 1}:
            raise ConfigurationError(
                f"Scores, and so thresholds, strength, margin and floor, go from 0 to 1; given: {wrong}."
            )
        if bare := [name for name in ("before", "after") if isinstance(getattr(self, name), Inspector)]:
            raise ConfigurationError(f"{bare[0]}= takes a list of inspectors: Policy({bare[0]}=[inspector]).")
        if bool(self.refusal) != bool(self.floor) or (self.refusal and not (self.before or self.after)):
            raise ConfigurationError(
                "A refusal text is served where an inspector rates an answer below the floor: it needs refusal=, floor= and "
                "inspectors in before= or after=."
            )

    def allowing(self, may_delete: Mapping[str, Sequence[str]]) -> Policy:
        """The same policy, under which a broken criterion may also cost what `aligner.json` says."""
        if not may_delete:
            return self
        return replace(self, checks=replace(self.checks, may_delete={**may_delete, **self.checks.may_delete}))

    @property
    def inspects(self) -> bool:
        """Whether anything has to be computed beside the Aligner."""
        return bool(self.before or self.after)

    @property
    def holds(self) -> bool:
        """Whether a correction can still be refused when it has been written."""
        return bool(self.after or self.refusal) or self.checks != Checks.off()

    def spoken(self, exchanges: Sequence[Exchange]) -> Sequence[Exchange]:
        """What of the exchanges is looked at."""
        return [spoken(one) for one in exchanges] if self.thoughts else exchanges

    def inspect(self, exchanges: Sequence[Exchange], metadata: AlignerMetadata) -> list[Inspection]:
        """What the inspectors say of the answers before they are corrected. Nothing raises: an error is its answers'."""
        found = [Inspection()] * len(exchanges)
        seen = [place for place, one in enumerate(exchanges) if one.answer.strip() and one.question.strip()]
        if not (self.before and seen):
            return found
        try:
            scores = scored(self.before, [exchanges[place] for place in seen])
        except AlignerError as error:
            return [Inspection(error=error) if place in seen else one for place, one in enumerate(found)]
        for place, one in zip(seen, scores, strict=True):
            limits = {name: self._threshold(name, exchanges[place], metadata) for name in one}
            found[place] = Inspection(scores=one, passed=passes(one, limits))
        return found

    def serve(self, corrections: Sequence[Correction]) -> list[Correction]:
        """The corrections as they are served: checked, verified, and refused where the answer is too bad to stay."""
        checked = [self.checks(one) for one in corrections]
        verified = self._verified(checked) if self.after else checked
        return [self._above_floor(one) for one in verified]

    def _threshold(self, criterion: str, exchange: Exchange, metadata: AlignerMetadata) -> float | None:
        return self.thresholds.get(criterion, metadata.threshold_of(criterion, upstream=exchange.upstream))

    def _verified(self, corrections: list[Correction]) -> list[Correction]:
        changed = [place for place, one in enumerate(corrections) if one.outcome == "corrected"]
        written = [corrections[place] for place in changed]
        try:
            before = scored(self.after, [one.exchange for one in written])
            after = scored(self.after, [replace(one.exchange, answer=one.text) for one in written])
        except AlignerError as error:
            failed = {place: _failed(corrections[place], error) for place in changed}
            return [failed.get(place, one) for place, one in enumerate(corrections)]
        judged = list(corrections)
        for place, one, old, new in zip(changed, written, before, after, strict=True):
            judged[place] = self._judged(one, old, new)
        return judged

    def _judged(self, correction: Correction, before: Scores, after: Scores) -> Correction:
        judged = replace(correction, scores={**before, **correction.scores})
        if before.keys() != after.keys() or not after:
            alone = ", ".join(sorted(before.keys() ^ after.keys())) or "anything"
            return judged.refused(
                f"the correction could not be inspected: answer and correction were not both scored for {alone}"
            )
        worse = [name for name, value in after.items() if before[name] - value > self.margin + _ROUNDING]
        if not worse:
            return judged
        falls = ", ".join("{} fell from {} to {}".format(name, *_apart(before[name], after[name])) for name in worse)
        return judged.refused(f"the correction did not pass inspection: {falls}")

    def _above_floor(self, correction: Correction) -> Correction:
        known = {name: value for name, value in correction.scores.items() if name not in ("keep", "copy", "leave")}
        if not self.refusal or correction.outcome not in ("approved", "kept") or not known:
            return correction
        name, value = worst(known)
        if value >= self.floor:
            return correction
        reason = "; ".join(
            filter(None, [correction.reason, f"refused, since {name} is {_apart(value, self.floor)[0]}"])
        )
        edits = edits_between(correction.exchange.answer, self.refusal)
        return replace(correction, outcome="kept", text=self.refusal, edits=edits, reason=reason)


def _failed(correction: Correction, error: AlignerError) -> Correction:
    return replace(correction.refused(str(error).partition(". ")[0]), outcome="failed", error=error)


def _apart(one: float, other: float) -> tuple[str, str]:
    """Two scores, with as many digits as it takes to see that they are not the same, but no fewer than two."""
    pairs = ((f"{one:.{digits}f}", f"{other:.{digits}f}") for digits in range(2, 17))
    return next((pair for pair in pairs if pair[0] != pair[1]), (repr(one), repr(other)))
