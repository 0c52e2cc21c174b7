"""How far a judge agrees with people: shares with their intervals, and Cohen's kappa. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from aligner_chain.calibration import wilson
from bootstrap.judges.preference import TIE
from bootstrap.judges.roles import fully_right


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How often a judge said what people said of the same `n` cases: `agreed` times.

    `share` is between 0 and 1, None for no case; `low` and `high` bound it with 95 % confidence. `kappa` is Cohen's: 1 is
    full agreement, 0 what two who do not look at the case would reach with the same habits; None where that is all
    there is to reach, since both always say the same.
    """

    n: int
    agreed: int
    share: float | None
    low: float
    high: float
    kappa: float | None

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceAgreement:
    """How far two agree on preferences, where both know ties.

    `strict` counts a tie as agreement with a tie alone; `decided` is over the cases in which neither says tie.
    `judge_ties` and `people_ties` count the ties of each.
    """

    strict: Agreement
    decided: Agreement
    judge_ties: int
    people_ties: int

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self)


def agreement(judge: Sequence[Hashable], people: Sequence[Hashable]) -> Agreement:
    """The agreement of two on the same cases, whatever they may say of one.

    Kappa is that of J. Cohen 1960, Educational and Psychological Measurement 20, 37-46: (p - e) / (1 - e), where p is
    the share of agreement and e what chance alone gives. The interval is Wilson's, for independent cases.

    Args:
        judge: what the one says of each case.
        people: what the others say, in the same order.

    Raises:
        ValueError: they are not of the same cases.
    """
    if len(judge) != len(people):
        raise ValueError(f"judge and people must be of the same cases, not of {len(judge)} and {len(people)}")
    n = len(judge)
    agreed = sum(one == other for one, other in zip(judge, people, strict=True))
    low, high = wilson(agreed, n)
    share = agreed / n if n else None
    return Agreement(n=n, agreed=agreed, share=share, low=low, high=high, kappa=_kappa(agreed, judge, people))


def preference_agreement(judge: Sequence[float], people: Sequence[float]) -> PreferenceAgreement:
    """The agreement of two on the scores of preferences (0, 0.5 for a tie, 1)."""
    strict = agreement(judge, people)
    decided = [(one, other) for one, other in zip(judge, people, strict=True) if TIE not in (one, other)]
    return PreferenceAgreement(
        strict=strict,
        decided=agreement([one for one, _ in decided], [other for _, other in decided]),
        judge_ties=sum(score == TIE for score in judge),
        people_ties=sum(score == TIE for score in people),
    )


def agreement_by_criterion(verdicts: Sequence[Mapping[str, bool]], people: Sequence[bool]) -> dict[str, Agreement]:
    """The agreement of a judge's whole verdict, under "fully right", and of each of its criteria.

    People speak of the whole answer. So a criterion's row says how much of what people mind it stands for, and a low one
    is no fault of the judge where people mind other things too.

    Args:
        verdicts: the judge's, for each answer whether it meets each criterion.
        people: whether people called the same answers right.
    """
    names = list(verdicts[0]) if verdicts else []
    rows = {name: agreement([verdict[name] for verdict in verdicts], people) for name in names}
    return {"fully right": agreement(fully_right(verdicts), people), **rows}


def _kappa(agreed: int, judge: Sequence[Hashable], people: Sequence[Hashable]) -> float | None:
    n = len(judge)
    habits, theirs = Counter(judge), Counter(people)
    by_chance = sum(count * theirs[value] for value, count in habits.items())  # of n * n
    return None if by_chance == n * n else (agreed * n - by_chance) / (n * n - by_chance)
