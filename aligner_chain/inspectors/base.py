"""What an inspector is, the one made of a function, several as one, and what a gate makes of their scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Protocol, TypeGuard, runtime_checkable

from aligner_chain.errors import ConfigurationError, InspectionError
from aligner_chain.exchange import Exchange


@runtime_checkable
class Inspector(Protocol):
    """Says of answers whether they need correcting."""

    def inspect(self, exchanges: Sequence[Exchange]) -> Sequence[Mapping[str, float]]:
        """For each answer, in the same order: criterion -> the probability (0 to 1) that it is all right."""


class CallableInspector:
    """An inspector made of a function, which says of one exchange what is known of its answer.

    The function returns a probability between 0 and 1 that the answer is all right, a bool (True: it is), or a mapping of
    several criteria to such values. What it raises is not caught. It is called from the thread that inspects.

    `inspect` raises `ConfigurationError` where the function returns something else.
    """

    def __init__(
        self, function: Callable[[Exchange], float | bool | Mapping[str, float]], criterion: str = "ok"
    ) -> None:
        self.function, self.criterion = function, criterion

    def inspect(self, exchanges: Sequence[Exchange]) -> list[dict[str, float]]:
        return [self._scores(self.function(exchange)) for exchange in exchanges]

    def _scores(self, found: object) -> dict[str, float]:
        scores = found if isinstance(found, Mapping) else {self.criterion: found}
        return {str(name): self._probability(value) for name, value in scores.items()}

    def _probability(self, value: object) -> float:
        if _is_probability(value):
            return float(value)
        named = getattr(self.function, "__name__", type(self.function).__name__)
        raise ConfigurationError(
            f"The function {named} of a CallableInspector returned {value!r}, which is no probability between 0 and 1 that "
            "the answer is all right. Let it return one, a bool, or a mapping of criteria to these; map a score of another "
            "range into 0 to 1 first."
        )


class AllInspectors:
    """Several inspectors as one: each sees every answer, and their criteria are put together.

    `inspect` raises `ConfigurationError` where two of them use the same name for a criterion, and for what is no probability
    of every answer: a gate would else open for a score that is none.
    """

    def __init__(self, *inspectors: Inspector) -> None:
        if not inspectors:
            raise ConfigurationError("AllInspectors() is empty; give it the inspectors to ask.")
        self.inspectors = inspectors

    def inspect(self, exchanges: Sequence[Exchange]) -> list[dict[str, float]]:
        found = [_found(inspector, exchanges) for inspector in self.inspectors]
        return [_merged(scores) for scores in zip(*found, strict=True)]


def scored(inspectors: Sequence[Inspector], exchanges: Sequence[Exchange]) -> list[dict[str, float]]:
    """The scores of all inspectors together; of no answers nobody is asked. Raises `InspectionError` for what any of them raises."""
    try:
        return AllInspectors(*inspectors).inspect(exchanges) if exchanges else []
    except Exception as error:  # anybody's code: what it raises belongs to these answers
        raise InspectionError(f"An inspector failed: {type(error).__name__}: {error}") from error


def worst(scores: Mapping[str, float]) -> tuple[str, float]:
    """The criterion with the lowest probability of being all right, the first of several, and that probability."""
    if not scores:
        raise ConfigurationError("There is no score to choose from: the inspector named no criterion for this answer.")
    return min(scores.items(), key=lambda one: one[1])


def passes(scores: Mapping[str, float], thresholds: Mapping[str, float | None]) -> bool:
    """Whether an answer may skip its correction: every criterion's score is above its threshold.

    A criterion without a threshold, or an answer without a score, keeps the gate shut. More criteria never let more bad
    answers through, so each threshold's bound holds for all of them together.

    Args:
        scores: What an inspector said of the answer.
        thresholds: By criterion, from a calibration (`AlignerMetadata.threshold_of`); None: none holds.
    """
    limits = [(score, thresholds.get(name)) for name, score in scores.items()]
    return bool(limits) and all(limit is not None and score > limit for score, limit in limits)


def _found(inspector: Inspector, exchanges: Sequence[Exchange]) -> list[Mapping[str, float]]:
    """What an inspector says of the answers, where it is what an inspector may say."""
    found, named = list(inspector.inspect(exchanges)), type(inspector).__name__
    if len(found) != len(exchanges):
        raise ConfigurationError(
            f"{named} gave {len(found)} mappings of scores for {len(exchanges)} answers; give one each."
        )
    for name, value in (one for scores in found for one in scores.items()):
        if not _is_probability(value):
            raise ConfigurationError(
                f"{named} gave {name!r} the score {value!r}, which is no probability between 0 and 1. Map a score of "
                "another range into 0 to 1 first, and leave out what could not be scored."
            )
    return found


def _is_probability(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and 0 <= float(value) <= 1  # False for NaN


def _merged(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    merged: dict[str, float] = {}
    for one in scores:
        if twice := merged.keys() & one.keys():
            raise ConfigurationError(
                f"Two inspectors both give the criterion {min(twice)!r}. Name one of them otherwise with criterion=, or "
                "leave one out."
            )
        merged |= one
    return merged
