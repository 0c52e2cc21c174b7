"""A test of preferences that may be looked at after every item and stopped at any: a betting e-process.

Start with a capital of 1 and bet, before each item, that the candidate wins it. If it is not better, no way of betting
makes the capital grow on average, whenever one stops; so by Ville's inequality (J. Ville 1939) it ever reaches
1 / alpha with a probability of at most alpha. The capital is the e-value: 20 is what a p-value of 5 % is elsewhere.

The bets are fixed shares of the capital, and the e-value is their average (the method of mixtures; I. Waudby-Smith and
A. Ramdas 2024, J. R. Stat. Soc. B 86, 1-27, arXiv 2010.09686). It takes scores between 0 and 1, ties included, and
nothing else is assumed of them but this: each prompt gives one item and they come in random order.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from math import exp, log, log1p
from operator import add
from typing import TypeVar

from bootstrap.evaluation.intervals import fewest
from bootstrap.evaluation.results import GateResult, Verdict, remedy

BETS = (0.1, 0.2, 0.3, 0.4)
"""Shares of the capital that are bet. They fit win rates of 55 to 70 %, where a few hundred items decide; at higher ones
bolder bets would save some ten items."""

MOST_ITEMS = 400
_HALVINGS = 40
_LARGEST_LOG = 700.0
"""exp of more is no float."""

Item = TypeVar("Item")
Scorer = Callable[[Sequence[Item]], Sequence[float]]
"""For each item how the candidate did against the served one: 1 won, 0.5 tied, 0 lost."""


def e_values(scores: Iterable[float], bets: Sequence[float] = BETS) -> Iterator[float]:
    """The e-value after each score, for the claim that the mean score is above 1/2. Before the first it is 1.

    Args:
        scores: each between 0 and 1, one for each prompt, in random order; asked for one by one.
        bets: shares of the capital, each at least 0 and below 1.

    Raises:
        ValueError: a score is no number between 0 and 1.
    """
    shares, capitals = tuple(bets), [0.0 for _ in bets]
    for score in scores:
        capitals = list(map(add, capitals, _gains(score, shares)))
        yield exp(min(_log_mean(capitals), _LARGEST_LOG))


def sequential_gate(name: str, scores: Iterable[float], *, alpha: float = 0.05, most: int = MOST_ITEMS) -> GateResult:
    """Promotes once the candidate is shown to win more than half, rejects once it is shown to win less.

    Takes one score after the other and none after the decision, so a judge that is paid by the item is asked no longer
    than needed (see `scores_in_random_order`). If `most` items or all that there are decide nothing, it holds.

    Args:
        scores: 1 won, 0.5 tied, 0 lost; one for each prompt, in random order.
        alpha: the probability of promoting a candidate that is not better, however often one looks. Over many rounds
            `bootstrap.evaluation.online.level` gives it. Rejecting has the same level.
        most: the most items that are asked for.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, not be {alpha}")
    seen: Counter[float] = Counter()
    decision, e_value = _decided(islice(scores, most), alpha, seen)
    n = seen.total()
    mean = sum(score * count for score, count in seen.items()) / n if n else 0.5
    needed = _items_needed(seen, alpha) if decision == "hold" else None
    return GateResult(
        name=name,
        decision=decision,
        figure=mean,
        bound=lower_bound(seen, alpha),
        threshold=0.5,
        n=n,
        measured="preferences between the candidate's answers and those served, one prompt each",
        found=f"won {mean:.1%} of {n} items ({seen[0.5]} ties), e-value {e_value:.3g}" if n else "no item was judged",
        required=f"the e-value must reach {1 / alpha:.4g} (alpha {alpha:.2%}) within {most} items",
        remedy=remedy(decision, n, needed),
        needed=needed,
    )


def scores_in_random_order(
    items: Sequence[Item], score: Scorer[Item], *, seed: int = 0, batch: int = 16
) -> Iterator[float]:
    """Scores of `items` in an order that the seed decides, a batch at a time and no sooner than they are wanted.

    What asks for no more scores has paid for at most `batch` - 1 of them in vain.

    Raises:
        ValueError: `score` gives another number of scores than it was given items.
    """
    order = random.Random(seed).sample(range(len(items)), len(items))
    for start in range(0, len(order), batch):
        asked = [items[number] for number in order[start : start + batch]]
        scored = score(asked)
        if len(scored) != len(asked):
            raise ValueError(f"{len(asked)} items were to be scored, and {len(scored)} scores came back")
        yield from scored


def verdict_scores(before: Sequence[bool], after: Sequence[bool], *, seed: int = 0) -> Iterator[float]:
    """Preferences from verdicts on the same prompts, in random order.

    A score is 1 where only the candidate is right, 0 where only the served one is, and 0.5 where they agree.
    """
    pairs = list(zip(before, after, strict=True))
    return scores_in_random_order(pairs, lambda some: [(1 + bool(a) - bool(b)) / 2 for b, a in some], seed=seed)


def lower_bound(seen: Mapping[float, float], alpha: float = 0.05) -> float:
    """The largest mean score that the scores, by their counts, speak against with an e-value of 1 / `alpha`.

    These bounds hold for all numbers of items at once, with probability 1 - `alpha` (a confidence sequence).
    """
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _log_e(seen, middle) >= -log(alpha) else (low, middle)
    return low


def _decided(scores: Iterable[float], alpha: float, seen: Counter[float]) -> tuple[Verdict, float]:
    """The decision and the e-value at it; `seen` counts the scores that were looked at."""
    better = worse = [0.0 for _ in BETS]
    enough = -log(alpha)
    for score in scores:
        better, worse = list(map(add, better, _gains(score))), list(map(add, worse, _gains(1 - score)))
        seen[score] += 1
        if max(better) >= enough and _log_mean(better) >= enough:  # the mean is at most the largest, and costs more
            return "promote", exp(_log_mean(better))
        if max(worse) >= enough and _log_mean(worse) >= enough:
            return "reject", exp(_log_mean(better))
    return "hold", exp(_log_mean(better))


@lru_cache(maxsize=1024)
def _gains(score: float, bets: tuple[float, ...] = BETS) -> tuple[float, ...]:
    """What the logarithm of each capital gains by a score: after two thousand wins the capitals would be no floats."""
    if not 0 <= score <= 1:
        raise ValueError(f"a score lies between 0 (lost) and 1 (won), not {score!r}")
    return tuple(log1p(bet * (2 * score - 1)) for bet in bets)


def _log_mean(logs: Sequence[float]) -> float:
    """The logarithm of the mean of what `logs` are the logarithms of."""
    largest = max(logs)
    return largest + log(sum(exp(one - largest) for one in logs) / len(logs))


def _log_e(seen: Mapping[float, float], mean: float) -> float:
    """The logarithm of the e-value against the claim that the scores' mean is at most `mean`; 1/2 is the gate's."""
    odds = [(score / mean - 1, count) for score, count in seen.items()]
    return _log_mean([sum(count * log1p(bet * gain) for gain, count in odds) for bet in BETS])


def _items_needed(seen: Counter[float], alpha: float) -> int | None:
    """How many items in all would decide if the scores to come are like those seen."""
    n = seen.total()

    def enough(items: int) -> bool:
        return _log_e({score: count * items / n for score, count in seen.items()}, 0.5) >= -log(alpha)

    return fewest(enough, n + 1) if n else None
