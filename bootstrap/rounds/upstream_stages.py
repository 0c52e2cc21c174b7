"""The first half of a round: what was collected is frozen, a candidate upstream is trained, measured and judged."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from aligner_chain.exchange import Exchange
from bootstrap.errors import TrainingDataError
from bootstrap.evaluation import Evidence, GatePolicy, GateResult, candidate_gates, decide, scores_in_random_order
from bootstrap.files import sync, sync_tree
from bootstrap.health import LIMITS, Health, health_limits, is_refusal, measure_health
from bootstrap.judges import fully_right, judged
from bootstrap.measures import share_figures
from bootstrap.pairs import (
    Pair,
    PairMaker,
    Triple,
    collect_pairs,
    human_triples,
    manifest,
    read_pairs,
    stream,
    write_pairs,
    write_triples,
)
from bootstrap.pairs.exports import export
from bootstrap.pairs.filters import DEFAULTS
from bootstrap.records import Split
from bootstrap.rounds.artifacts import read_any, read_exchanges, write_exchanges, write_rows
from bootstrap.rounds.ledger import Ledger
from bootstrap.rounds.recorded import MORE_HELD_OUT, recorded_answers
from bootstrap.rounds.work import Work
from bootstrap.store import CorrectionStore
from bootstrap.training import TrainingJob, run_job

Result = Mapping[str, Any]

MOST_PROBES = 200
HANDED_OVER, EXPORTS = "preference", "exports"
_ENDS = {"reject": "rejected", "hold": "held"}


def freeze(work: Work, out: Path) -> Result:
    """Takes from the store all that this round will read of it: pairs, prompts by split, and what people vouch for."""
    with contextlib.closing(CorrectionStore(work.config.store)) as store:
        splits: tuple[Split, ...] = ("train", "gate")
        # Before anything else: what is deleted from now on was perhaps read, and such a round is not resumed.
        ids = [one for split in splits for one in store.ids(split)]
        found = collect_pairs(store, minimum=work.config.least_pairs)
        # Ids are drawn with the clock: in the order of the texts the same traffic makes the same candidate.
        pairs = sorted(found.pairs, key=_text_order)
        vouched = human_triples(store.records("train", feedback=True)).triples
        probe = _probe(store)
        asked = recorded_answers if work.parent.upstream is None else CorrectionStore.prompts
        counts: dict[str, int] = {
            split: write_exchanges(out / f"{split}.jsonl", asked(store, split)) for split in splits
        }
        if work.config.base_upstream is None:
            export(store, out / HANDED_OVER, form="openai-preference")
    write_pairs(out / "pairs.jsonl", pairs)
    write_pairs(out / "probe.jsonl", probe)
    write_pairs(out / "replay.jsonl", map(_replayed, work.config.gold))
    write_triples(out / "vouched.jsonl", vouched)
    write_rows(out / "ids.jsonl", dict.fromkeys([*ids, *(pair.correction_id for pair in pairs)]))
    work.say(f"{len(pairs)} pairs from live corrections, left out {dict(found.dropped)}")
    data = manifest(pairs, found.dropped)
    ends = _ends_without_news(work, data["sha256"])
    if not counts["gate"]:
        reason = f"no held-out prompt was collected, and a candidate is judged by these alone. {MORE_HELD_OUT}"
        ends = {"ends": ["skipped", reason]}
    return {**counts, "vouched": len(vouched), "pairs": data, **ends}


def train(work: Work, out: Path) -> Result:
    """Trains a candidate on all pairs so far, in a process of its own unless the launcher says otherwise."""
    config, frozen = work.config, work.folders["freeze"]
    if config.base_upstream is None:
        return {"skipped": _hand_over(work)}
    work.say(f"DPO on {work.results['freeze']['pairs']['rows']} pairs")
    job = TrainingJob(
        kind="upstream",
        base=config.base_upstream,
        data=frozen / "pairs.jsonl",
        work=work.scratch("train_upstream"),
        out=out / "model",
        settings=config.dpo,
        parent=None if config.dpo.start == "fresh" or work.parent.upstream is None else work.parent.upstream.path,
        replay=frozen / "replay.jsonl" if config.gold and config.dpo.replay else None,
    )
    return run_job(job, config.launcher)


def evaluate(work: Work, out: Path) -> Result:
    """Lets the served upstream and the candidate answer the gate prompts, and the judge say which answers are right."""
    prompts = read_exchanges(work.folders["freeze"] / "gate.jsonl")
    served, judge = work.parent.upstream, work.config.yardstick.judge
    asked: dict[str, tuple[Path, str] | None] = {"before": None if served is None else (served.path, served.identity)}
    if not work.refused:
        asked["after"] = work.upstream
    figures = {}
    for name, upstream in asked.items():
        answers = prompts if upstream is None else work.answers(upstream[0], prompts, upstream[1])
        verdicts = judged(judge, answers)
        write_exchanges(out / f"{name}.jsonl", answers)
        write_rows(out / f"{name}-verdicts.jsonl", verdicts)
        figures[name] = share_figures(verdicts)
    health = {} if work.refused or served is None else _health(work, out, served.path)
    return {"n": len(prompts), **figures, "health": health}


def gate(work: Work, out: Path) -> Result:
    """Compares the candidate, alone, with the upstream that is served.

    The level of the test falls with the number of candidates that were tested before (e-LOND), so that of all promotions
    over many rounds few are of upstreams that are no better.
    """
    if work.refused:
        return {"skipped": work.refused}
    folder = work.folders["evaluate_upstream"]
    verdicts = [read_verdicts(folder, name) for name in ("before", "after")]
    answers = [[one.answer for one in read_exchanges(folder / f"{name}.jsonl")] for name in ("before", "after")]
    evidence = upstream_evidence(
        (verdicts[0], verdicts[1]),
        (answers[0], answers[1]),
        health=work.results["evaluate_upstream"]["health"],
        scores=_preferences(work, folder),
        seed=work.config.seed,
    )
    tests, promoted = _tested(work)
    found = decided(work, out, candidate_gates(evidence, work.config.policy, tests=tests, promoted=promoted))
    return _gone_on(work, found) if "ends" in found and work.config.aligner_alone else found


def upstream_evidence(
    verdicts: tuple[Sequence[Mapping[str, bool]], Sequence[Mapping[str, bool]]],
    answers: tuple[Sequence[str], Sequence[str]],
    *,
    health: Mapping[str, float],
    scores: Iterable[float] | None = None,
    seed: int = 0,
) -> Evidence:
    """What the gates are told of a candidate upstream: both upstreams' verdicts and answers, those served first.

    Args:
        verdicts: of the judge, one for each prompt, in the order of the answers.
        answers: to the same gate prompts, all of them harmless.
        health: what `gated_health` left of the measures.
        scores: of a judge of preference; None takes the verdicts.
        seed: of the order in which verdicts are looked at.
    """
    (before, after), (old, new) = verdicts, answers
    return Evidence(
        right=(fully_right(before), fully_right(after)),
        refused=([is_refusal(text) for text in old], [is_refusal(text) for text in new]),
        lengths=([len(text) for text in old], [len(text) for text in new]),
        criteria={name: ([one[name] for one in before], [one[name] for one in after]) for name in before[0]},
        health=health,
        scores=scores,
        seed=seed,
    )


def gated_health(health: Health, policy: GatePolicy) -> Mapping[str, float]:
    """The measures of a training for which the policy has a limit, as far as they were measured."""
    return {name: value for name, value, _, _ in health_limits(health, LIMITS) if name in policy.health}


def read_verdicts(folder: Path, name: str) -> list[dict[str, bool]]:
    """What the judge said of the answers that `evaluate` left under this name."""
    with (folder / f"{name}-verdicts.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def decided(work: Work, out: Path, gates: Sequence[GateResult]) -> Result:
    """What a gate stage leaves: its decisions, and how the round ends where one of them is not to promote."""
    for one in gates:
        work.say(f"gate {one.name}: {one.decision}, {one.reason}")
    rows, decision = [asdict(one) for one in gates], decide(gates)
    write_rows(out / "gates.jsonl", rows)
    if decision.decision == "promote":
        return {"gates": rows}
    return {"gates": rows, "ends": [_ENDS[decision.decision], "; ".join(decision.reasons)]}


def _gone_on(work: Work, found: Result) -> Result:
    """The same decision, with which the round goes on for the upstream that is served."""
    status, reason = found["ends"]
    work.say("the served upstream stays, and the round goes on with the Aligner alone")
    return {"gates": found["gates"], "refused": f"the candidate upstream was {status} ({reason})"}


def _hand_over(work: Work) -> str:
    """Puts the pairs where the provider's fine-tuning can be given them, once, and says why nothing is trained here."""
    folder = work.registry.home / EXPORTS / f"round-{work.number}"
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        staged = folder.with_name(f".{folder.name}.new")
        shutil.rmtree(staged, ignore_errors=True)
        shutil.copytree(work.folders["freeze"] / HANDED_OVER, staged)
        sync_tree(staged)
        staged.rename(folder)
        sync(folder.parent)
    reason = "the upstream is not trained here, no base_upstream is named"
    work.say(f"{reason}; the pairs for its provider's fine-tuning are in {folder}")
    return reason


def _ends_without_news(work: Work, sha256: str) -> Result:
    """Ends a round that would make a candidate once more that was judged already: each test of it makes the next stricter."""
    rounds = Ledger(work.registry.database).rounds()
    same_config = next(one.config_hash for one in rounds if one.number == work.number)
    for one in rounds:
        tested = one.result("gate_upstream").get("gates") or one.result("gate_pair")
        judged = one.config_hash == same_config and tested
        if judged and one.number != work.number and one.result("freeze")["pairs"]["sha256"] == sha256:
            reason = f"its pairs are those of round {one.number}, which was {one.status}; collect more, or change the settings"
            return {"ends": ["skipped", reason]}
    return {}


def _preferences(work: Work, folder: Path) -> Iterator[float] | None:
    """The scores of a judge of preference, asked no longer than the gate needs; None where the round has none."""
    judge = work.config.preference
    if judge is None:
        return None
    before, after = (read_exchanges(folder / f"{name}.jsonl") for name in ("before", "after"))

    def score(some: Sequence[tuple[Exchange, Exchange]]) -> list[float]:
        old, new = ([one[at] for one in some] for at in (0, 1))
        return [one.score for one in judge.prefer(old, [one.answer for one in old], [one.answer for one in new])]

    return scores_in_random_order(list(zip(before, after, strict=True)), score, seed=work.config.seed)


def _tested(work: Work) -> tuple[int, int]:
    """How many upstreams were tested in earlier rounds, and how many of them passed the first test."""
    gates = [one.result("gate_upstream").get("gates", ()) for one in Ledger(work.registry.database).rounds()]
    decisions = [some[0]["decision"] for some in gates if some]
    return len(decisions), decisions.count("promote")


def _health(work: Work, out: Path, served: Path) -> Mapping[str, float]:
    """What the training did to the upstream besides, as far as it could be measured."""
    before, after = ([one.answer for one in read_exchanges(out / f"{name}.jsonl")] for name in ("before", "after"))
    candidate, probe = work.folders["train_upstream"] / "model", work.folders["freeze"] / "probe.jsonl"
    measure = partial(measure_health, candidate, served, answers=(before, after), garbled=work.config.yardstick.garbled)
    try:
        health = measure(probe=read_any(read_pairs, probe), unrelated=work.config.unrelated)
    except TrainingDataError as error:
        # A base of another family than what is served: it is judged by its answers alone.
        work.say(f"likelihoods are not compared: {error}")
        health = measure(probe=())
    return gated_health(health, work.config.policy)


def _probe(store: CorrectionStore) -> list[Pair]:
    """Held-out pairs, on which the likelihood of chosen answers is looked at; the same from round to round."""
    with stream(store, PairMaker(DEFAULTS), split="gate") as rows:
        pairs = sorted((one.row for one in rows), key=_text_order)
    return pairs[:MOST_PROBES]


def _replayed(row: Triple) -> Pair:
    """A right answer as a pair of equals, which is plain fine-tuning on it."""
    text = row.answer if row.correction is None else row.correction
    return Pair(turns=row.turns, chosen=text, rejected=text, correction_id="gold")


def _text_order(pair: Pair) -> tuple[object, ...]:
    return ([(turn.role, turn.text) for turn in pair.turns], pair.rejected, pair.chosen, pair.correction_id)
