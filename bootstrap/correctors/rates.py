"""Who wins by one criterion, and by how much: asked in both orders, ties counted, also as it would be at equal length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any

from aligner_chain.exchange import Exchange
from bootstrap.errors import JudgeError
from bootstrap.evaluation.gates import LEAST_ITEMS, ONE_SIDED
from bootstrap.evaluation.intervals import net_interval
from bootstrap.evaluation.lengths import controlled_win_rate
from bootstrap.judges import Judge, Preference, PreferenceJudge, fully_right, judged
from bootstrap.judges.preference import FIRST, SECOND, TIE, compared
from bootstrap.judges.roles import failures_told

Comparing = Callable[[Sequence[Exchange], Sequence[str]], Sequence[Preference]]
"""How texts fare against the answers of their exchanges, each looked at in both orders."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Net:
    """(wins - losses) / all, between -1 and 1, with its 95 % interval."""

    net: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class WinRate:
    """How what a corrector serves fares against the answers, by one criterion.

    Of `n` answers some became better (`wins`), some worse (`losses`) and the others neither (`ties`): an answer that was left
    as it was is a tie, one on which the corrector failed is lost. `net` has the score interval of T. Tango.
    `order_decided` of the ties had another winner when the two texts changed places, and of `unreadable` ones a verdict could
    not be read.

    `compared` texts were changed, and `longer` is the share of these that are longer than the answer. `at_equal_length` is
    `net` as it would be if none of them were: the length-controlled win rate of these, since of a copy there is nothing to
    learn about length. It is None below 50 of them, and where nearly all are longer, or shorter, so that nothing can part
    length from quality.
    """

    wins: int
    ties: int
    losses: int
    n: int
    net: Net
    order_decided: int
    unreadable: int
    compared: int
    longer: float | None
    at_equal_length: Net | None

    @classmethod
    def of(cls, preferences: Sequence[Preference], length_differences: Sequence[float | None]) -> WinRate:
        """The rate over one preference or more of what is served against the answer.

        Args:
            preferences: of each answer.
            length_differences: how much longer what is served is, in any unit; None where nothing was compared.
        """
        scores = [one.score for one in preferences]
        n, wins, losses = len(scores), scores.count(SECOND), scores.count(FIRST)
        low, high = net_interval(wins, losses, n)
        pairs = [(one, by) for one, by in zip(scores, length_differences, strict=True) if by is not None]
        shares = [(by > 0) + (by == 0) / 2 for _, by in pairs]
        return cls(
            wins=wins,
            ties=n - wins - losses,
            losses=losses,
            n=n,
            net=Net(net=(wins - losses) / n, low=low, high=high),
            order_decided=sum({FIRST, SECOND} <= {*one.votes} for one in preferences),
            unreadable=sum(None in one.votes for one in preferences),
            compared=len(pairs),
            longer=fmean(shares) if shares else None,
            at_equal_length=_at_equal_length(pairs, lost=losses - [one for one, _ in pairs].count(FIRST), n=n),
        )


def comparing(judge: Any, prompts: Sequence[Exchange]) -> Mapping[str, Comparing]:
    """What a judge compares by: its criteria by their names.

    Args:
        judge: judges of preference by the names of their criteria, one such judge ("preferred"), or a judge of right and
            wrong, by whose criteria a text is better that meets one which the answer does not.
        prompts: what will be compared; a judge of right and wrong is asked about the first one for the names of its criteria.

    Raises:
        JudgeError: it is nothing of that.
    """
    judges = judge if isinstance(judge, Mapping) else {"preferred": judge} if hasattr(judge, "prefer") else None
    if judges and all(hasattr(one, "prefer") for one in judges.values()):
        return {name: partial(in_both_orders, one) for name, one in judges.items()}
    if judges is None and callable(judge):
        return _Verdicts(judge).by_criterion(prompts[0])
    raise JudgeError(
        f"{type(judge).__name__} is no judge: neither an object with a method prefer, nor such objects by the names of "
        "criteria, nor a function of exchanges. Make one, like\n"
        '  judge = {"harmless": ChatModelJudge(model, criteria={"harmless": "It does no harm."}, cache="judgements.db")}'
    )


def in_both_orders(judge: PreferenceJudge, exchanges: Sequence[Exchange], texts: Sequence[str]) -> list[Preference]:
    """How texts fare against the answers; where the order of the two decides it is a tie.

    A judge that looks twice by itself, and says so in `Preference.votes`, is asked once, and so is one that says tie.

    Raises:
        JudgeError: what it returns is not a preference for each.
    """
    answers = [one.answer for one in exchanges]
    found = _asked(judge, exchanges, answers, texts)
    once = [at for at, one in enumerate(found) if len(one.votes) < 2 and one.score != TIE]
    turned = _asked(judge, [exchanges[at] for at in once], [texts[at] for at in once], [answers[at] for at in once])
    for at, other in zip(once, turned, strict=True):
        votes = found[at].score, 1 - other.score
        score = votes[0] if votes[0] == votes[1] else TIE
        found[at] = replace(found[at], score=score, votes=votes)
    return found


def _asked(
    judge: PreferenceJudge, prompts: Sequence[Exchange], first: Sequence[str], second: Sequence[str]
) -> list[Preference]:
    with failures_told("The judge failed"):
        said = list(judge.prefer(prompts, first, second)) if prompts else []
    if len(said) != len(prompts) or not all(isinstance(one, Preference) for one in said):
        raise JudgeError(
            f"The judge {type(judge).__name__} did not return one Preference for each of {len(prompts)} prompts. "
            "Return  [Preference(score=...), ...]  with 1.0 where the second answer is better, 0.0 where the first is, "
            "0.5 for a tie."
        )
    return said


class _Verdicts:
    """A judge of right and wrong that is asked once about each answer."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._known: dict[Exchange, Mapping[str, bool]] = {}

    def by_criterion(self, example: Exchange) -> dict[str, Comparing]:
        names = list(self._of([example])[0])
        return {"fully right": partial(self._compared, None), **{name: partial(self._compared, name) for name in names}}

    def _compared(self, name: str | None, exchanges: Sequence[Exchange], texts: Sequence[str]) -> list[Preference]:
        before = _flags(self._of(exchanges), name)
        after = _flags(self._of([replace(one, answer=text) for one, text in zip(exchanges, texts, strict=True)]), name)
        return [Preference(score=compared(one, other)) for one, other in zip(before, after, strict=True)]

    def _of(self, exchanges: Iterable[Exchange]) -> list[Mapping[str, bool]]:
        asked = list(exchanges)
        new = [one for one in dict.fromkeys(asked) if one not in self._known]
        with failures_told("The judge failed"):
            said = judged(self._judge, new) if new else []
        self._known.update(zip(new, said, strict=True))
        return [self._known[one] for one in asked]


def _flags(verdicts: Sequence[Mapping[str, bool]], name: str | None) -> list[bool]:
    """Whether each meets a criterion; None: all of them."""
    return fully_right(verdicts) if name is None else [bool(verdict[name]) for verdict in verdicts]


def _at_equal_length(pairs: Sequence[tuple[float, float]], *, lost: int, n: int) -> Net | None:
    """The net rate over `n` answers, of which `lost` ones were lost without a comparison."""
    if len(pairs) < LEAST_ITEMS:
        return None
    found = controlled_win_rate(*zip(*pairs, strict=True))
    if not ONE_SIDED <= found.longer <= 1 - ONE_SIDED:
        return None
    # A tie is half a win of a win rate, and the answers that were left are ties.
    net, low, high = (((2 * rate - 1) * len(pairs) - lost) / n for rate in (found.rate, found.low, found.high))
    return Net(net=net, low=low, high=high)
