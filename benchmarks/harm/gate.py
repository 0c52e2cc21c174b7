"""What a gate saves: every way to correct on the same answers, one at a time and in turns, CPU time and all else per answer."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import desk
from copying import copying_aligner
from report import Figures, ratio, share, shown, table

from aligner_chain import Aligner, Correction, Exchange
from aligner_chain.calibration import calibrate
from aligner_chain.inspectors import TrainedInspector
from aligner_chain.policy import Policy
from bootstrap.demo.start import LEAVE_FROM

DELTA = 0.05
RIGHT = 0.7
"""The share of right answers among those that are measured."""
COLUMNS = (
    "", "forwards", "tokens", "of the draft", "CPU ms", "called", "right changed", "wrong fixed", "wrong missed", "threshold"
)  # fmt: skip
DRAFTED, CLASSIFIER = "always, drafts", "classifier, then Aligner"
VERDICTS = (
    "verdict alone, as it came",
    "verdict alone, calibrated",
    "verdict or draft, as it came",
    "verdict or draft, calibrated",
)


@dataclass(frozen=True)
class Way:
    """One way to correct. An answer is `skipped` where a score above `threshold` let it pass; None: nothing is let pass."""

    aligner: Aligner
    strength: float | None = None
    score: str = ""
    threshold: float | None = None

    @classmethod
    def gated(cls, aligner: Aligner, score: str, threshold: float) -> Way:
        """By one score of the Aligner's own, as if its `aligner.json` named that threshold alone."""
        metadata = replace(aligner.metadata, thresholds={score: threshold}, calibrations={})
        made = Aligner(aligner.engine, metadata=metadata, template=aligner.template, tokenizer=aligner.tokenizer)
        return cls(made, None, score, threshold)

    def skips(self, correction: Correction) -> bool:
        return self.threshold is not None and correction.scores.get(self.score, 0.0) > self.threshold


@dataclass(frozen=True)
class Case:
    """What one way made of one answer."""

    right: bool
    skipped: bool
    changed: bool
    fine: bool
    cpu_s: float
    correction: Correction


def ways(demo: Path, work: Path, known_bad: Sequence[Exchange], seed: int, alpha: float) -> dict[str, Way]:
    """All ways, their thresholds calibrated on the same known-bad answers, which no model has seen."""
    verdict, copying = desk.local_aligner(desk.served(demo)), copying_aligner(demo, work, seed)
    inspector = learned(demo, seed)
    passing = _calibrated(inspector, "ok", known_bad, alpha)
    leave, copy = _calibrated(verdict, "leave", known_bad, alpha), _calibrated(copying, "copy", known_bad, alpha)
    keep = _threshold([one.scores["keep"] for one in verdict.correct(known_bad)], alpha)
    before = Policy(before=[inspector], thresholds={"ok": passing})
    return {
        "always, plain": Way(desk.local_aligner(desk.served(demo), packed=False), 1.0),
        DRAFTED: Way(verdict, 1.0),
        VERDICTS[0]: Way.gated(verdict, "keep", LEAVE_FROM),
        VERDICTS[1]: Way.gated(verdict, "keep", keep),
        VERDICTS[2]: Way.gated(verdict, "leave", LEAVE_FROM),
        VERDICTS[3]: Way.gated(verdict, "leave", leave),
        "no verdict: always, drafts": Way(copying, 1.0),
        "no verdict: copy score": Way(copying, copy, "copy", copy),
        CLASSIFIER: Way(verdict.under(before), None, "ok", passing),
    }


def learned(demo: Path, seed: int, asked: int = 4000, generated: int = 4000) -> TrainedInspector:
    """An inspector that learnt from labelled answers to questions of the training split, real ones and generated ones.

    What is wrong with an answer is often wrong only for its question, and takes many examples to learn.
    """
    rng = random.Random(f"{seed} inspector")
    some = desk.prompts(rng, desk.training, "train")
    said = desk.upstream_answers(demo, [next(some) for _ in range(asked)], seed)
    made = desk.generated([next(some) for _ in range(generated)], rng)
    right, wrong = [*said.right, *made.right], [*said.wrong, *made.wrong]
    return TrainedInspector.train([*right, *wrong], [True] * len(right) + [False] * len(wrong))


def _calibrated(inspector: Aligner | TrainedInspector, name: str, bad: Sequence[Exchange], alpha: float) -> float:
    return _threshold([one[name] for one in inspector.inspect(bad)], alpha)


def _threshold(scores: Sequence[float], alpha: float) -> float:
    threshold = calibrate(scores, alpha=alpha, delta=DELTA)
    if threshold is None:
        raise SystemExit(f"{len(scores)} known-bad answers are too few for alpha={alpha}.")
    return threshold


def mixed(answers: desk.Answers, count: int, dice: random.Random) -> list[Exchange]:
    """`count` answers, the share `RIGHT` of them right, in random order."""
    n_right = round(RIGHT * count)
    if n_right > len(answers.right) or count - n_right > len(answers.wrong):
        raise SystemExit(
            f"{count} answers are asked for, and there are {len(answers.right)} right and {len(answers.wrong)} wrong."
        )
    chosen = [*answers.right[:n_right], *answers.wrong[: count - n_right]]
    return dice.sample(chosen, len(chosen))


def measure(found: dict[str, Way], answers: Sequence[Exchange], alpha: float) -> Figures:
    """Corrects every answer in every way, which take turns, so that a slow minute slows all of them."""
    cases: dict[str, list[Case]] = {name: [] for name in found}
    names = list(found)
    for name in names * 5:  # the first drafts measure what a forward costs
        _case(found[name], answers[0])
    for at, one in enumerate(answers):
        for name in (*names[at % len(names) :], *names[: at % len(names)]):
            cases[name].append(_case(found[name], one))
    rows = {name: _row(found[name], some) for name, some in cases.items()}
    return {"answers": len(answers), "alpha": alpha, "delta": DELTA, "ways": rows, "claims": list(_claims(cases))}


def _case(way: Way, exchange: Exchange) -> Case:
    start = time.process_time()
    [correction] = way.aligner.correct([exchange], strength=way.strength)
    spent = time.process_time() - start
    return Case(
        right=desk.is_right(exchange, exchange.answer),
        skipped=way.skips(correction),
        changed=correction.changed,
        fine=desk.is_right(exchange, correction.text),
        cpu_s=spent,
        correction=correction,
    )


def _row(way: Way, cases: Sequence[Case]) -> Figures:
    usages = [case.correction.usage for case in cases]
    wrong = [case for case in cases if not case.right]
    return {
        "forwards": statistics.mean(one.forwards for one in usages),
        "new_tokens": statistics.mean(one.new_tokens for one in usages),
        "accepted_draft_tokens": statistics.mean(one.accepted_draft_tokens for one in usages),
        "cpu_ms": 1000 * statistics.mean(case.cpu_s for case in cases),
        "cpu_ms_median": 1000 * statistics.median(case.cpu_s for case in cases),
        "called": share(one.forwards > 0 for one in usages),
        "right_changed": share(case.changed for case in cases if case.right),
        "right_damaged": share(not case.fine for case in cases if case.right),
        "wrong_fixed": share(case.fine for case in wrong),
        "wrong_missed": share(case.skipped for case in wrong) if way.threshold is not None else None,
        "threshold": way.threshold,
    }


def _claims(cases: dict[str, list[Case]]) -> Iterator[Figures]:
    calls = share(case.correction.usage.forwards > 0 for case in cases[CLASSIFIER])
    yield {"claim": "the classifier saves half of the calls", "calls": calls, "met": calls["share"] <= 0.5}
    for name in VERDICTS:
        spent = ratio(*([case.cpu_s for case in cases[one]] for one in (name, DRAFTED)))
        edits = [sum(case.right and case.changed for case in cases[one]) for one in (name, DRAFTED)]
        met = spent["ratio"] <= 0.7 or 2 * edits[0] <= edits[1]
        yield {
            "claim": f"{name}: 30 % of the CPU time or half of the false edits",
            "cpu": spent,
            "false_edits": edits,
            "met": met,
        }


def show(figures: Figures) -> None:
    print(f"\n{figures['answers']} answers, {RIGHT:.0%} right, alpha {figures['alpha']:.0%}")
    table(COLUMNS, (_shown_row(name, row) for name, row in figures["ways"].items()))
    for claim in figures["claims"]:
        print(claim)


def _shown_row(name: str, row: Figures) -> list[str]:
    numbers = [f"{row[column]:.2f}" for column in ("forwards", "new_tokens", "accepted_draft_tokens", "cpu_ms")]
    shares = [shown(row[column]) for column in ("called", "right_changed", "wrong_fixed")]
    missed = "-" if row["wrong_missed"] is None else shown(row["wrong_missed"])
    return [name, *numbers, *shares, missed, "-" if row["threshold"] is None else f"{row['threshold']:.4f}"]
