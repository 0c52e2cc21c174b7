"""How often the gates are wrong: the sequential test under peeking, many rounds, and a bank of candidates.

    python benchmarks/gates.py [--simulations 2000] [--runs 100]

Sequential: `sequential_gate` on simulated preferences, looked at after every item, at most 400 of them, alpha 5 %; beside it
the usual test of a win rate at 5 %, looked at after every item from the 20th on. Rounds: 50 candidates, one after the other, each
tested with alpha 5 % or with the level of e-LOND; none is better, or every second one wins 65 %.

Bank: candidates whose truth is known, each judged by the policy in many runs. Everything is simulated here, the answers too:
a prompt has a difficulty that both answers share, which correlates them, and an answer is right where its own luck outweighs
it. 2,000 prompts; the judge of the rows "preferences" likes length, and judges 400 of them. So this measures the policy, and says
nothing of any model or judge. Prints tables and writes benchmarks/results/gates.json.
"""

from __future__ import annotations

import argparse
import platform
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from statistics import NormalDist, fmean
from typing import Any

import numpy as np
from stored import Figures, commit, write

from aligner_chain import __version__
from bootstrap.evaluation import (
    Evidence,
    GatePolicy,
    Preferences,
    candidate_gates,
    decide,
    level,
    sequential_gate,
    wilson,
)

PROMPTS, SAFETY, ITEMS, RIGHT = 2000, 1000, 400, 0.60
ROUNDS = 50


# --- the sequential test -------------------------------------------------------------------------------------------


def items(rng: random.Random, wins: float, losses: float) -> Iterator[float]:
    """Preferences without end; what neither wins nor loses is a tie."""
    while True:
        luck = rng.random()
        yield 1.0 if luck < wins else 0.0 if luck < wins + losses else 0.5


def sequential(simulations: int, workers: Executor) -> list[Figures]:
    cases = [(rate, ties) for rate in (0.50, 0.55, 0.60, 0.65) for ties in (0.0, 0.2)]
    return list(workers.map(_sequential, *zip(*cases, strict=True), repeat(simulations)))


def _sequential(rate: float, ties: float, simulations: int) -> Figures:
    """`rate` is the share of wins among the items that are decided, `ties` that of all others."""
    rng = random.Random(0)
    wins, losses = (1 - ties) * rate, (1 - ties) * (1 - rate)
    gates = [sequential_gate("", items(rng, wins, losses), most=ITEMS) for _ in range(simulations)]
    peeked = sum(_peeking_promotes(items(rng, wins, losses)) for _ in range(simulations))
    verdicts = Counter(gate.decision for gate in gates)
    return {
        "win_rate": rate,
        "ties": ties,
        "simulations": simulations,
        "promoted": verdicts["promote"],
        "rejected": verdicts["reject"],
        "interval": wilson(verdicts["promote"], simulations),
        "mean_items": fmean(gate.n for gate in gates),
        "fixed_test_peeked_at": peeked,
    }


def _peeking_promotes(scores: Iterator[float], least: int = 20) -> bool:
    """What a one-sided sign test at 5 % would do if it were looked at after each item."""
    z, won, decided = NormalDist().inv_cdf(0.95), 0, 0
    for _, score in zip(range(ITEMS), scores, strict=False):
        won, decided = won + (score == 1), decided + (score != 0.5)
        if decided >= least and (2 * won - decided) / decided**0.5 > z:
            return True
    return False


def rounds(simulations: int, workers: Executor) -> list[Figures]:
    cases = [(every, controlled) for every in (0, 2) for controlled in (False, True)]
    return list(workers.map(_rounds, *zip(*cases, strict=True), repeat(simulations)))


def _rounds(every: int, controlled: bool, simulations: int) -> Figures:
    """Each `every`-th candidate is better, none of them where that is 0."""
    rng = random.Random(0)
    series = [_promotions(rng, every, controlled) for _ in range(simulations)]
    return {
        "better": "every second" if every else "none",
        "level": "e-LOND" if controlled else "5 % each",
        "simulations": simulations,
        "rounds": ROUNDS,
        "false_promotions": fmean(false for false, _ in series),
        "true_promotions": fmean(true for _, true in series),
        "share_false": fmean(false / max(false + true, 1) for false, true in series),
    }


def _promotions(rng: random.Random, every: int, controlled: bool) -> tuple[int, int]:
    found = Counter[bool]()
    for number in range(ROUNDS):
        better = every > 0 and number % every == 1
        alpha = level(number, found.total()) if controlled else 0.05
        wins = 0.65 if better else 0.5
        if sequential_gate("", items(rng, wins, 1 - wins), alpha=alpha, most=ITEMS).passed:
            found[better] += 1
    return found[False], found[True]


# --- the bank --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What is true of a candidate. Shares are between 0 and 1; what is served is right in 60 % of cases.

    `points` is its change of right answers; `shared` how far both answers to a prompt share their luck; `refused` the share of
    harmless prompts refused; `length` how many times as long its answers are; `impolite` the share that loses that criterion;
    `unsafe` that of safety prompts newly failed; `damaged` that of right answers made worse; `win_rate`, at equal length and
    without a rule to judge by, makes it a row of preferences. `harm` marks those that must not serve though no points are lost.
    """

    name: str
    points: float = 0.0
    shared: float = 0.7
    refused: float = 0.01
    length: float = 1.0
    impolite: float = 0.0
    unsafe: float = 0.0
    damaged: float = 0.005
    win_rate: float | None = None
    harm: bool = False
    health: dict[str, float] = field(default_factory=lambda: {"chosen_fallen": 0.12, "garbled": 0.002})

    @property
    def lead(self) -> float:
        """By how many points of 100 it is truly better; of a win rate, wins less losses."""
        return round(100 * (self.points if self.win_rate is None else 2 * self.win_rate - 1), 6)

    @property
    def wanted(self) -> str:
        if self.harm or self.lead <= -3:
            return "at most 5 %"
        return "at least 80 %" if self.lead >= 10 else ""


BANK = (
    *(Candidate(name=f"better by {points}", points=points / 100) for points in (3, 5, 8, 10, 12, 15)),
    Candidate(name="a copy of the served one", shared=1.0),
    Candidate(name="equal"),
    Candidate(name="equal, other answers", shared=0.3),
    Candidate(name="weights with a little noise", points=-0.01, shared=0.5),
    Candidate(name="noised weights", points=-0.06, shared=0.4, health={"chosen_fallen": 0.5, "garbled": 0.04}),
    *(Candidate(name=f"worse by {points}", points=-points / 100) for points in (3, 5, 8, 12, 20)),
    Candidate(name="swapped pairs", points=-0.25, shared=0.3, health={"chosen_fallen": 0.8, "garbled": 0.01}),
    Candidate(name="learning rate x 30", points=-0.35, shared=0.1, health={"chosen_fallen": 0.9, "garbled": 0.3}),
    Candidate(name="refuses everything", points=-0.58, refused=0.98, length=0.4),
    Candidate(name="better, refuses 5 % more", points=0.08, refused=0.06, harm=True),
    Candidate(name="better, but garbles 3 %", points=0.10, harm=True, health={"chosen_fallen": 0.2, "garbled": 0.03}),
    Candidate(name="better, but impolite in 8 %", points=0.06, impolite=0.08, harm=True),
    Candidate(name="better, unsafe in 4 %", points=0.10, unsafe=0.04, harm=True),
    Candidate(name="better, damages 6 % of right", points=0.05, damaged=0.06, harm=True),
    Candidate(name="empty answers", points=-0.60, length=0.0),
    Candidate(name="verbose, equal", win_rate=0.5, length=1.6, harm=True),
    Candidate(name="a little verbose, equal", win_rate=0.5, length=1.12),
    Candidate(name="a little verbose, worse", win_rate=0.46, length=1.12),
    Candidate(name="better at equal length", win_rate=0.65, length=1.02),
    Candidate(name="worse at equal length", win_rate=0.40, length=1.02),
)  # fmt: skip
BIAS = 1.0
"""How much the judge of preferences likes length, in logits."""


def evidence(candidate: Candidate, rng: np.random.Generator, seed: int) -> Evidence:
    served_length = rng.gamma(9, 12, PROMPTS)
    length = served_length * candidate.length * rng.lognormal(-0.02, 0.2, PROMPTS)
    right = _pair(rng, PROMPTS, RIGHT, RIGHT + candidate.points, candidate.shared)
    differences = (length - served_length)[:ITEMS]
    preferences = None
    if candidate.win_rate is not None:
        quality = np.log(candidate.win_rate / (1 - candidate.win_rate))
        liked = _sigmoid(quality + BIAS * np.tanh(differences / differences.std()))
        scores = np.where(rng.random(ITEMS) < 0.2, 0.5, (rng.random(ITEMS) < liked).astype(float))
        preferences = Preferences(scores=scores.tolist(), length_differences=differences.tolist())
    return Evidence(
        right=right,
        refused=_pair(rng, PROMPTS, 0.01, candidate.refused, 0.95),
        lengths=(served_length.tolist(), length.tolist()),
        criteria={"polite": _pair(rng, PROMPTS, 0.95, 0.95 - candidate.impolite, 0.8)},
        regression={"safety": _pair(rng, SAFETY, 0.99, 0.99 - candidate.unsafe, 1.0)},
        preferences=preferences,
        scores=None if preferences is None else preferences.scores,
        damaged=(rng.random(sum(right[0])) < candidate.damaged).tolist(),
        health=candidate.health,
        seed=seed,
    )


def _pair(
    rng: np.random.Generator, n: int, served: float, share: float, shared: float
) -> tuple[list[bool], list[bool]]:
    """Right or not, for both answers to n prompts: normal luck, of whose variance `shared` is the prompt's."""
    prompt, own = rng.standard_normal(n), rng.standard_normal((2, n))
    luck = shared**0.5 * prompt + (1 - shared) ** 0.5 * own
    bars = [NormalDist().inv_cdf(min(max(one, 1e-9), 1 - 1e-9)) for one in (served, share)]
    before, after = ((one < bar).tolist() for one, bar in zip(luck, bars, strict=True))
    return before, after


def _sigmoid(value: Any) -> Any:
    return 1 / (1 + np.exp(-value))


def bank(runs: int, workers: Executor) -> list[Figures]:
    return list(workers.map(_judged, BANK, range(len(BANK)), repeat(runs)))


def _judged(candidate: Candidate, number: int, runs: int) -> Figures:
    policy, verdicts, blocked = GatePolicy(), Counter[str](), Counter[str]()
    for run in range(runs):
        gates = candidate_gates(evidence(candidate, np.random.default_rng([number, run]), run), policy)
        verdicts[decide(gates).decision] += 1
        blocked.update(gate.name for gate in gates if not gate.passed)
    share = verdicts["promote"] / runs
    met = {"at most 5 %": share <= 0.05, "at least 80 %": share >= 0.80}.get(candidate.wanted)
    return {
        "candidate": candidate.name,
        "judged_by": "verdicts" if candidate.win_rate is None else "preferences",
        "lead_points": candidate.lead,
        "runs": runs,
        **{verdict: verdicts[verdict] for verdict in ("promote", "hold", "reject")},
        "interval": wilson(verdicts["promote"], runs),
        "stopped_by": dict(blocked.most_common()),
        "wanted": candidate.wanted,
        "met": met,
    }


# --- the report ------------------------------------------------------------------------------------------------------


def claims(result: Figures) -> dict[str, bool]:
    """What the gates promise, and whether it came out. Fewer simulations than 2,000 count in proportion.

    The share of false promotions over rounds is an expectation, so the lower end of its interval counts.
    """
    untied = {row["win_rate"]: row["promoted"] / row["simulations"] for row in result["sequential"] if not row["ties"]}
    equal = [row for row in result["sequential"] if row["win_rate"] == 0.5]
    return {
        "at most 116 of 2,000 false promotions": all(
            row["promoted"] * 2000 <= 116 * row["simulations"] for row in equal
        ),
        "power at 60 % at least 0.80": untied[0.60] >= 0.80,
        "power at 65 % at least 0.95": untied[0.65] >= 0.95,
        "at most 5 % of the promotions over rounds are false": all(
            wilson(round(row["share_false"] * row["simulations"]), row["simulations"])[0] <= 0.05
            for row in result["rounds"]
            if row["level"] == "e-LOND"
        ),
        "bank: the worse by 3 or more and the harmful in at most 5 % of runs, the better by 10 in at least 80 %": all(
            row["met"] is not False for row in result["bank"]
        ),
    }


def table(result: Figures) -> list[str]:
    lines = [f"{'win rate':<10}{'ties':>6}{'promoted':>10}{'rejected':>10}{'items':>8}{'sign test, peeked at':>22}"]
    for row in result["sequential"]:
        shares = [f"{row[key] / row['simulations']:>10.1%}" for key in ("promoted", "rejected")]
        peeked = f"{row['fixed_test_peeked_at'] / row['simulations']:>22.1%}"
        lines.append(f"{row['win_rate']:<10.2f}{row['ties']:>6.0%}{''.join(shares)}{row['mean_items']:>8.0f}{peeked}")
    lines.append(f"\n{'better':<14}{'level':<10}{'false':>8}{'true':>8}{'share false':>13}   (of {ROUNDS} rounds)")
    for row in result["rounds"]:
        counts = f"{row['false_promotions']:>8.2f}{row['true_promotions']:>8.2f}{row['share_false']:>13.1%}"
        lines.append(f"{row['better']:<14}{row['level']:<10}{counts}")
    lines.append(
        f"\n{'candidate':<31}{'lead':>6}{'promote':>9}{'hold':>7}{'reject':>8}   {'wanted':<15}stopped most often by"
    )
    for row in result["bank"]:
        shares = [f"{row[key] / row['runs']:.1%}" for key in ("promote", "hold", "reject")]
        counts = f"{row['lead_points']:>+6.0f}{shares[0]:>9}{shares[1]:>7}{shares[2]:>8}"
        missed = "  MISSED" if row["met"] is False else ""
        by = next(iter(row["stopped_by"]), "")
        lines.append(f"{row['candidate']:<31}{counts}   {row['wanted']:<15}{by}{missed}")
    return [*lines, "", *(f"{'met   ' if met else 'MISSED'} {claim}" for claim, met in result["claims"].items())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--simulations", type=int, default=2000, help="of the sequential test; a twentieth of them of rounds"
    )
    parser.add_argument("--runs", type=int, default=100, help="of each candidate of the bank")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    result: Figures = {
        "machine": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "aligner_chain": __version__,
        "commit": commit(),
    }
    with ProcessPoolExecutor(arguments.workers) as workers:
        result["bank"] = bank(arguments.runs, workers)
        result["sequential"] = sequential(arguments.simulations, workers)
        result["rounds"] = rounds(max(arguments.simulations // 20, 1), workers)
    result["claims"] = claims(result)
    write("gates", result)
    print("\n".join(table(result)))


if __name__ == "__main__":
    main()
