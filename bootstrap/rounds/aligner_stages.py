"""The second half of a round: an Aligner that fits the new upstream is trained on verified rows, judged, and promoted."""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from aligner_chain.aligner import Aligner
from aligner_chain.checkpoint import read_metadata, write_metadata
from aligner_chain.errors import CapabilityError
from aligner_chain.exchange import Correction, Exchange
from aligner_chain.tradeoff import Tradeoff, measure
from bootstrap import rollout
from bootstrap.evaluation import (
    GateResult,
    level,
    non_inferiority_gate,
    over_editing_gate,
    sequential_gate,
    share_gate,
    verdict_scores,
)
from bootstrap.judges import annotated, fully_right, verified
from bootstrap.measures import Measured, share_figures
from bootstrap.pairs import manifest, read_triples, triples, write_triples
from bootstrap.registry import Kind, PairVersion, Version
from bootstrap.rounds.artifacts import (
    read_any,
    read_corrections,
    read_exchanges,
    read_rows,
    write_corrections,
    write_exchanges,
    write_rows,
)
from bootstrap.rounds.ledger import Ledger
from bootstrap.rounds.nulls import NULLS
from bootstrap.rounds.recorded import recorded_upstream
from bootstrap.rounds.upstream_stages import Result, decided, read_verdicts
from bootstrap.rounds.work import Work
from bootstrap.training import TrainingJob, run_job

LEAST_KEPT = 0.98
"""The share of known-right answers that a candidate Aligner must leave as they are."""

BETTER_ALONE = "Aligner better than the served one"
UPSTREAM_ALONE = "new upstream with the served Aligner"


def regenerate(work: Work, out: Path) -> Result:
    """Lets the upstream answer training prompts anew: the Aligner must fit what it writes.

    Of a provider's upstream the recorded answers are taken.
    """
    prompts = read_exchanges(work.folders["freeze"] / "train.jsonl")
    prompts.sort(key=_prompt_order)
    prompts = random.Random(work.config.seed).sample(prompts, min(len(prompts), work.config.regenerate))
    if work.upstream is None:
        return {"recorded": write_exchanges(out / "answers.jsonl", prompts)}
    folder, identity = work.upstream
    return {"answers": write_exchanges(out / "answers.jsonl", work.answers(folder, prompts, identity))}


def correct(work: Work, out: Path) -> Result:
    """Lets the served Aligner correct them."""
    answers = read_exchanges(work.folders["regenerate"] / "answers.jsonl")
    corrections = work.corrections(work.parent.aligner.path, answers)
    return {"corrections": write_corrections(out / "corrections.jsonl", corrections)}


def verify(work: Work, out: Path) -> Result:
    """Asks the verifier, which is neither the Aligner nor its annotator, which corrections are fit to learn from."""
    corrections = read_corrections(work.folders["correct"] / "corrections.jsonl")
    confirmed = verified(work.config.verifier, corrections)
    write_rows(out / "confirmed.jsonl", confirmed)
    return {"confirmed": sum(confirmed), "refused": len(confirmed) - sum(confirmed)}


def annotate(work: Work, out: Path) -> Result:
    """Has the annotator repair some of the answers whose correction the verifier refused."""
    _, refused = _by_verdict(work)
    rng = random.Random(f"{work.config.seed} annotate")
    asked = rng.sample(refused, min(len(refused), work.config.annotations)) if work.config.annotator else []
    exchanges = [one.exchange for one in asked]
    repaired = annotated(work.config.annotator, exchanges) if work.config.annotator and exchanges else []
    rows = [one.triple(exchange, "annotated") for exchange, one in zip(exchanges, repaired, strict=True)]
    write_triples(out / "annotated.jsonl", rows)
    return {"annotated": len(rows)}


def build_triples(work: Work, out: Path) -> Result:
    """Puts the training set together: gold, what people vouch for, what was confirmed, what was annotated."""
    confirmed, _ = _by_verdict(work)
    parts = {
        "gold": list(work.config.gold),
        "human": read_any(read_triples, work.folders["freeze"] / "vouched.jsonl"),
        "verified": list(triples(confirmed, source="verified").triples),
        "annotated": read_any(read_triples, work.folders["annotate"] / "annotated.jsonl"),
    }
    rows = [row for part in parts.values() for row in part]
    write_triples(out / "triples.jsonl", rows)
    counts = {name: len(part) for name, part in parts.items()}
    work.say(f"rows for the Aligner: {counts}, {work.results['verify']['refused']} corrections were refused")
    return {**counts, "data": {**manifest(rows), "sources": counts}}


def train(work: Work, out: Path) -> Result:
    """Trains a candidate Aligner from the base on all rows, in a process of its own unless the launcher says otherwise."""
    config = work.config
    job = TrainingJob(
        kind="aligner",
        base=config.base_aligner,
        data=work.folders["triples"] / "triples.jsonl",
        work=work.scratch("train_aligner"),
        out=out / "model",
        settings=config.aligner,
    )
    figures = run_job(job, config.launcher)
    work.say(f"Aligner trained on {figures['rows']} rows, {figures['keep_share']:.0%} of them right answers")
    return figures


def calibrate(work: Work, out: Path) -> Result:
    """Measures anew each threshold that the served Aligner has, on its upstream's answers to the gate prompts."""
    served = read_metadata(work.parent.aligner.path).calibrations
    if not served:
        return {"calibrations": []}
    folder = work.folders["evaluate_upstream"]
    answers = read_exchanges(folder / f"{work.answered}.jsonl")
    right = fully_right(read_verdicts(folder, work.answered))
    with contextlib.closing(Aligner.from_pretrained(str(_aligner(work)))) as aligner:
        try:
            scores = aligner.inspect(answers)
        except CapabilityError:  # a template without scores cannot have any of the old thresholds either
            return {"calibrations": []}
    rows = [
        row
        for name, one in served.items()
        if any(name in score for score in scores)
        for row in measure(scores, right, alphas=[one.alpha], delta=one.delta)
        if row.criterion == name
    ]
    write_rows(out / "calibrations.jsonl", map(asdict, rows))
    for row in rows:
        work.say(f"calibrated {row.criterion} at {row.alpha:.0%}: {row.threshold or 'shut, too few wrong answers'}")
    return {"calibrations": [asdict(row) for row in rows]}


def evaluate(work: Work, out: Path) -> Result:
    """Lets the candidate and the served Aligner correct the gate answers of the new upstream, and the served pair its own.

    Where the served upstream stays, the new one is the old one, and what was served is measured once.
    """
    answered = work.folders["evaluate_upstream"]
    new, old = (read_exchanges(answered / f"{name}.jsonl") for name in (work.answered, "before"))
    served = work.parent.aligner.path
    pairs = [("served_on_old", served, old), ("candidate_on_new", _aligner(work), new)]
    if not work.refused:
        pairs.append(("served_on_new", served, new))
    figures = {}
    for name, folder, answers in pairs:
        corrections = work.corrections(folder, answers)
        measured = work.config.yardstick.measure_corrections(corrections)
        write_corrections(out / f"{name}.jsonl", corrections)
        write_rows(out / f"{name}-right.jsonl", measured.right_aligned)
        figures[name] = measured.figures()
        if name == "candidate_on_new":
            figures["kept"] = _kept(work, measured)
    figures["nulls"] = {
        name: share_figures(work.config.yardstick.measure(new, null(new)).aligned) for name, null in NULLS.items()
    }
    return figures


def gate(work: Work, out: Path) -> Result:
    """Compares the Aligners on the new upstream's answers, and the pairs as a whole.

    Where the served upstream stays, the Aligner is all that is new, so it must be better: were it enough to be no worse,
    many rounds might each lose a little and nobody would gain. Where only the candidate Aligner is refused, the new upstream
    may still be served with the Aligner that is served: what was shown to be better need not wait for the other.
    """
    config = work.config
    new = read_rows(work.folders["evaluate_pair"] / "candidate_on_new-right.jsonl")
    kept = work.results["evaluate_pair"]["kept"]
    gates = [_better_alone(work, new)] if work.refused else _not_worse(work, new)
    gates.append(share_gate("right answers kept", kept["k"], kept["n"], LEAST_KEPT))
    gates.append(over_editing_gate("right answers not damaged", _damaged(work, new), config.policy.damaged))
    found = decided(work, out, gates)
    return found if work.refused or "ends" not in found else _with_served_aligner(work, out, found)


def _with_served_aligner(work: Work, out: Path, found: Result) -> Result:
    """The decision on the new upstream with the served Aligner, where that on the candidate Aligner was not to promote it."""
    folder, config = work.folders["evaluate_pair"], work.config
    old, new = (read_rows(folder / f"{name}-right.jsonl") for name in ("served_on_old", "served_on_new"))
    alone = decided(
        work,
        out,
        [
            non_inferiority_gate(UPSTREAM_ALONE, old, new, config.pair_margin),
            over_editing_gate("right answers not damaged by it", _damaged(work, new), config.policy.damaged),
        ],
    )
    gates = [*found["gates"], *alone["gates"]]
    write_rows(out / "gates.jsonl", gates)
    if "ends" in alone:
        return {**found, "gates": gates}
    status, reason = found["ends"]
    work.say("the served Aligner stays, and the new upstream is served with it")
    return {"gates": gates, "refused": f"the candidate Aligner was {status} ({reason})"}


def _not_worse(work: Work, new: Sequence[bool]) -> list[GateResult]:
    folder, config = work.folders["evaluate_pair"], work.config
    return [
        non_inferiority_gate(name, read_rows(folder / f"{before}-right.jsonl"), new, margin)
        for name, before, margin in (
            ("Aligner on the new upstream", "served_on_new", config.margin),
            ("new pair against served pair", "served_on_old", config.pair_margin),
        )
    ]


def _better_alone(work: Work, new: Sequence[bool]) -> GateResult:
    """The test of an Aligner for an upstream that stays; its level falls with the number of those before (e-LOND)."""
    before = read_rows(work.folders["evaluate_pair"] / "served_on_old-right.jsonl")
    rounds = Ledger(work.registry.database).rounds()
    tested = [one["decision"] for round_ in rounds for one in round_.gates if one["name"] == BETTER_ALONE]
    alpha = level(len(tested), tested.count("promote"), work.config.policy.alpha)
    scores = verdict_scores(before, new, seed=work.config.seed)
    return sequential_gate(BETTER_ALONE, scores, alpha=alpha, most=len(new))


def promote(work: Work, out: Path) -> Result:
    """Serves the new pair where the one was that it was compared with, if that still is served."""
    pair = register(work)
    served = work.registry.served()
    if served is None or served.number != pair.number:  # else killed right after it was promoted
        rollout.promote(work.registry, pair, expected=work.parent, fence=work.fence, say=work.say)
    work.say(f"promoted pair {pair.number}: {' with '.join(version.identity for version in pair.versions)}")
    return {"pair": pair.number}


def register(work: Work) -> PairVersion:
    """Gives what is new its version and notes what the pair is; the same again for a round that was killed."""
    upstream = work.parent.upstream
    if not work.refused:
        upstream = _version(work, "upstream", work.folders["train_upstream"] / "model", work.results["freeze"]["pairs"])
    aligner = work.parent.aligner
    if not work.aligner_refused:
        aligner = _version(work, "aligner", _aligner(work), work.results["triples"]["data"], upstream=upstream)
    made = [pair for pair in work.registry.pairs() if pair.figures.get("round") == work.number]
    figures = {**work.results["evaluate_pair"][work.measured], "round": work.number}
    return made[-1] if made else work.registry.register_pair(upstream, aligner, figures=figures, fence=work.fence)


def _version(work: Work, kind: Kind, source: Path, data: Result, upstream: Version | None = None) -> Version:
    """The version that this round made of a candidate, made now unless a killed process has."""
    made = [one for one in work.registry.versions(kind) if one.manifest.get("round") == work.number]
    if made:
        return made[-1]
    base = work.config.base_upstream if kind == "upstream" else work.config.base_aligner
    described = {"base": str(base), "data": dict(data), "parent": work.parent.number, "round": work.number}

    def write(folder: Path) -> None:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        if kind == "aligner":
            _write_calibrations(work, folder, _recorded(work) if upstream is None else upstream.identity)

    return work.registry.add(kind, write, described, fence=work.fence)


def _recorded(work: Work) -> str | None:
    """What the provider's upstream is called in the answers that were calibrated on."""
    return recorded_upstream(read_exchanges(work.folders["evaluate_upstream"] / "before.jsonl"))


def _write_calibrations(work: Work, folder: Path, upstream: str | None) -> None:
    """Binds what was calibrated to the upstream's version, which has its number only now."""
    metadata = read_metadata(folder)
    made = [Tradeoff(**row).calibration(metadata.identity, upstream) for row in _calibrations(work)]
    write_metadata(folder, replace(metadata, calibrations={one.criterion: one for one in made if one is not None}))


def _calibrations(work: Work) -> Sequence[dict[str, Any]]:
    found: Sequence[dict[str, Any]] = work.results["calibrate"]["calibrations"]
    return found


def _kept(work: Work, new: Measured) -> dict[str, int]:
    """How many answers that are known to be right the candidate Aligner leaves as they are."""
    if work.config.known_right is None:
        kept = [not moved for moved, right in zip(new.changed, new.right_alone, strict=True) if right]
    else:
        kept = [not one.changed for one in work.corrections(_aligner(work), work.config.known_right)]
    return {"k": sum(kept), "n": len(kept)}


def _damaged(work: Work, right_after: Sequence[bool]) -> list[bool]:
    """Of the answers that were right alone, which the candidate Aligner made wrong."""
    right_before = fully_right(read_verdicts(work.folders["evaluate_upstream"], work.answered))
    return [not after for before, after in zip(right_before, right_after, strict=True) if before]


def _by_verdict(work: Work) -> tuple[list[Correction], list[Correction]]:
    """The corrections that the verifier confirmed, and the others."""
    corrections = read_corrections(work.folders["correct"] / "corrections.jsonl")
    confirmed = read_rows(work.folders["verify"] / "confirmed.jsonl")
    rows = list(zip(corrections, confirmed, strict=True))
    return [one for one, fit in rows if fit], [one for one, fit in rows if not fit]


def _aligner(work: Work) -> Path:
    return work.folders["train_aligner"] / "model"


def _prompt_order(prompt: Exchange) -> tuple[tuple[str, str], ...]:
    return tuple((turn.role, turn.text) for turn in prompt.turns)
