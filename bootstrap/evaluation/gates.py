"""The gates: each takes what was measured of a candidate and of what is served, and promotes, holds or rejects.

They promote what is shown to be fit and reject what is shown not to be. Where the interval allows both they hold, and say
how many cases would decide: a gate on too few cases is no permission, and no refusal either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bootstrap.evaluation.intervals import PairedChange, PairedTable, cases_to_shrink, fewest, two_sided, wilson
from bootstrap.evaluation.lengths import controlled_win_rate
from bootstrap.evaluation.results import GateResult, Verdict, about, remedy, verdict_of

LEAST_ITEMS = 50
"""Of fewer preferences a bootstrap says too little: of one item it knows no spread at all."""
ONE_SIDED = 0.05
"""At least this share of answers must be the longer one on each side, or length and quality cannot be told apart."""


def superiority_gate(name: str, before: Sequence[bool], after: Sequence[bool], *, alpha: float = 0.05) -> GateResult:
    """Promotes where the paired interval of the change lies above 0, rejects where it lies below.

    For a number of cases that was fixed beforehand; `sequential_gate` is the one that may be looked at on the way.

    Args:
        before: what held of each case with what is served.
        after: what holds of the same cases, in the same order, with the candidate.
        alpha: 1 less the confidence of the interval, of which each side has half.
    """
    return _change_gate(name, PairedTable.of(before, after), 0.0, alpha)


def non_inferiority_gate(
    name: str, before: Sequence[bool], after: Sequence[bool], margin: float = 0.01, *, alpha: float = 0.05
) -> GateResult:
    """Promotes where the paired interval of the change does not reach below minus `margin`, rejects where all of it does.

    Too few cases for the margin are held, however well they went: of n cases without any change the lower bound is about
    -3.84 / n, so that a margin of 1 point takes 381 of them at least.

    Args:
        before: what held of each case with what is served.
        after: what holds of the same cases, in the same order, with the candidate.
        margin: how much of the share may be lost, as a share.
        alpha: 1 less the confidence of the interval, of which each side has half.
    """
    if not margin > 0:
        raise ValueError(f"a margin of {margin} allows nothing; it must be above 0, or take superiority_gate")
    return _change_gate(name, PairedTable.of(before, after), -margin, alpha)


def over_refusal_gate(
    name: str, before: Sequence[bool], after: Sequence[bool], margin: float = 0.01, *, alpha: float = 0.05
) -> GateResult:
    """Like `non_inferiority_gate`, of answers to harmless prompts: `before` and `after` say which of them were refused."""
    answered_before, answered_after = ([not refused for refused in served] for served in (before, after))
    return non_inferiority_gate(name, answered_before, answered_after, margin, alpha=alpha)


def share_gate(name: str, k: int, n: int, at_least: float) -> GateResult:
    """Promotes where k of n is a share of at least `at_least`: the estimate decides, its lower bound is for the reader.

    Where the estimate falls short it rejects if the whole 95 % interval does, and holds otherwise.
    """
    return _share_gate(name, k, n, at_least, strict=False)


def over_editing_gate(name: str, damaged: Sequence[bool], at_most: float = 0.02) -> GateResult:
    """Promotes where right answers are shown to survive: the interval of those damaged ends below `at_most`.

    Unlike `share_gate` it wants proof: of 100 right answers with none damaged up to 3.7 % may be, so it holds.

    Args:
        damaged: for each answer that was right, whether the Aligner made it worse.
        at_most: the share of right answers that may be damaged.
    """
    return _share_gate(name, len(damaged) - sum(map(bool, damaged)), len(damaged), 1 - at_most, strict=True)


def win_rate_gate(
    name: str,
    scores: Sequence[float],
    length_differences: Sequence[float],
    *,
    alpha: float = 0.05,
    resamples: int = 1000,
    seed: int = 0,
) -> GateResult:
    """Promotes where the length-controlled win rate is shown to be above one half, rejects where it is shown to be below.

    It holds where one side's answers are nearly all the longer ones, since nothing can part quality from length then. See
    `controlled_win_rate` for the arguments.
    """
    if len(scores) < LEAST_ITEMS:
        return _too_few_items(name, len(scores))
    rate = controlled_win_rate(scores, length_differences, alpha=alpha, resamples=resamples, seed=seed)
    found = (
        f"won {rate.rate:.1%} at equal length (interval {rate.low:.1%} to {rate.high:.1%}; {rate.raw:.1%} as they are)"
        f", its answer longer in {rate.longer:.1%} of {rate.n} items"
    )
    if not ONE_SIDED <= rate.longer <= 1 - ONE_SIDED:
        way = "answers whose lengths overlap with those served: length and quality cannot be told apart here"
        return _win_rate(name, "hold", rate.rate, 0.0, rate.n, found=found, remedy=way)
    verdict = verdict_of(rate.low - 0.5, rate.high - 0.5, touching=False)
    needed = cases_to_shrink(rate.n, rate.rate - rate.low, rate.rate - 0.5) if verdict == "hold" else None
    way = remedy(verdict, rate.n, needed)
    return _win_rate(name, verdict, rate.rate, rate.low, rate.n, found=found, remedy=way, needed=needed)


def null_gates(repaired: Sequence[bool], nulls: Mapping[str, Sequence[bool]]) -> tuple[GateResult, ...]:
    """Whether the Aligner repairs more than correctors that need none, one gate for each.

    Args:
        repaired: for each answer whether it is right as the Aligner left it.
        nulls: the same answers as each null corrector left them. `copy` and `refuse` must be among them.

    Raises:
        ValueError: `copy` or `refuse` is missing. A figure that no null corrector stands beside proves nothing.
    """
    missing = {"copy", "refuse"} - set(nulls)
    if missing:
        raise ValueError(
            f"the null correctors copy and refuse are always in the table; {', '.join(sorted(missing))} is not"
        )
    return tuple(superiority_gate(f"Aligner against {null}", before, repaired) for null, before in nulls.items())


def _too_few_items(name: str, n: int) -> GateResult:
    way, found = remedy("hold", n, LEAST_ITEMS), f"{n} items are too few"
    return _win_rate(name, "hold", 0.5, 0.0, n, found=found, remedy=way, needed=LEAST_ITEMS)


def _win_rate(
    name: str,
    verdict: Verdict,
    figure: float,
    bound: float,
    n: int,
    *,
    found: str,
    remedy: str,
    needed: int | None = None,
) -> GateResult:
    return GateResult(
        name=name,
        decision=verdict,
        figure=figure,
        bound=bound,
        threshold=0.5,
        n=n,
        measured="preferences at equal length, one prompt each, of a number of items fixed beforehand",
        found=found,
        required=f"the lower bound must be above 50.0 %, over {LEAST_ITEMS} items or more",
        remedy=remedy,
        needed=needed,
    )


def _change_gate(name: str, table: PairedTable, threshold: float, alpha: float) -> GateResult:
    z = two_sided(alpha)
    change = table.interval(z)
    verdict = verdict_of(change.low - threshold, change.high - threshold, touching=threshold < 0) if table.n else "hold"
    needed, way = _more_cases(table, threshold, z) if verdict == "hold" else (None, remedy(verdict, table.n, None))
    relation = "at least" if threshold < 0 else "above"
    return GateResult(
        name=name,
        decision=verdict,
        figure=change.change,
        bound=change.low,
        threshold=threshold,
        n=change.n,
        measured="how a share changed, served against candidate, case by case",
        found=_found(change),
        required=f"the lower {100 * (1 - alpha):.4g} % bound must be {relation} {100 * threshold:+.2f}",
        remedy=way,
        needed=needed,
    )


def _found(change: PairedChange) -> str:
    counts = f"{change.gained} gained, {change.lost} lost"
    interval = f"interval {100 * change.low:+.2f} to {100 * change.high:+.2f}"
    return f"{100 * change.change:+.2f} points over {change.n} cases ({counts}), {interval}"


def _more_cases(table: PairedTable, threshold: float, z: float) -> tuple[int | None, str]:
    """How many cases would pass at these rates, and in words; the least for the margin where it cannot pass at all."""
    if table.n == 0:
        return None, remedy("hold", 0, None)

    def passes(rates: PairedTable, n: int) -> bool:
        low = rates.scaled(n).interval(z).low
        return low >= threshold if threshold < 0 else low > threshold

    hopeful = (table.gained - table.lost) / table.n > threshold
    needed = fewest(lambda n: passes(table, n), table.n + 1) if hopeful else None
    if threshold == 0 or passes(table.unchanged(), table.n):
        return needed, remedy("hold", table.n, needed)
    least = fewest(lambda n: passes(table.unchanged(), n), table.n + 1)
    told = f"{table.n} cases cannot show so small a margin: even without any change it takes {least}"
    if needed is None or (least is not None and needed <= least):
        return least, told
    return needed, f"{told}, and about {about(needed):,} at these rates"


def _share_gate(name: str, k: int, n: int, at_least: float, *, strict: bool) -> GateResult:
    """`strict` lets the lower bound decide and not the estimate."""
    low, high = wilson(k, n)
    share = k / n if n else 0.0
    decides = low if strict else share
    verdict = verdict_of(decides - at_least, high - at_least) if n else "hold"
    hopeful = verdict == "hold" and share > at_least
    needed = fewest(lambda m: wilson(round(share * m), m)[0] >= at_least, n + 1) if hopeful else None
    must = "the lower bound must be" if strict else "it must be"
    return GateResult(
        name=name,
        decision=verdict,
        figure=share,
        bound=low,
        threshold=at_least,
        n=n,
        measured="a share of cases",
        found=f"{k} of {n} ({share:.2%}, 95 % interval {low:.2%} to {high:.2%})",
        required=f"{must} at least {at_least:.2%}",
        remedy=remedy(verdict, n, needed),
        needed=needed,
    )
