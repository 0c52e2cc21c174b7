"""The first half of a round: what was collected is frozen, a candidate upstream is trained, measured and judged."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bootstrap.evaluation import GateResult, superiority_gate
from bootstrap.judges import fully_right
from bootstrap.measures import share_figures
from bootstrap.pairs import Pair, collect_pairs, human_triples, manifest
from bootstrap.rounds.artifacts import (
    read_exchanges,
    read_pairs,
    write_exchanges,
    write_pairs,
    write_rows,
    write_triples,
)
from bootstrap.rounds.work import Work
from bootstrap.store import CorrectionStore
from bootstrap.upstream import save_model, train_upstream

Result = Mapping[str, Any]


def freeze(work: Work, out: Path) -> Result:
    """Takes from the store all that this round will read of it: pairs, prompts by split, and what people vouch for."""
    with contextlib.closing(CorrectionStore(work.config.store)) as store:
        found = collect_pairs(store, minimum=work.config.least_pairs)
        # Ids are drawn with the clock: in the order of the texts the same traffic makes the same candidate.
        pairs = sorted(found.pairs, key=_text_order)
        vouched = human_triples(store.records("train", feedback=True)).triples
        counts = {split: write_exchanges(out / f"{split}.jsonl", store.prompts(split)) for split in ("train", "gate")}
    write_pairs(out / "pairs.jsonl", pairs)
    write_triples(out / "vouched.jsonl", vouched)
    write_rows(out / "ids.jsonl", [pair.correction_id for pair in pairs])
    work.say(f"{len(pairs)} pairs from live corrections, left out {dict(found.dropped)}")
    return {**counts, "vouched": len(vouched), "pairs": manifest(pairs, found.dropped)}


def train(work: Work, out: Path) -> Result:
    """Trains a fresh candidate from the base on all pairs so far."""
    config, pairs = work.config, read_pairs(work.folders["freeze"] / "pairs.jsonl")
    work.say(f"DPO on {len(pairs)} pairs")
    scratch = work.scratch("train_upstream")
    model = train_upstream(
        config.base_upstream, pairs, scratch, config.dpo, progress=work.progress, resume=scratch.is_dir()
    )
    save_model(model, config.base_upstream, out / "model")
    return {"pairs": len(pairs)}


def evaluate(work: Work, out: Path) -> Result:
    """Lets the served upstream and the candidate answer the gate prompts, and the judge say which answers are right."""
    prompts = read_exchanges(work.folders["freeze"] / "gate.jsonl")
    served, judge = work.served_upstream, work.config.yardstick.judge
    asked = {
        "before": (served.path, served.identity),
        "after": (work.folders["train_upstream"] / "model", work.candidate),
    }
    figures = {}
    for name, (folder, identity) in asked.items():
        answers = work.answers(folder, prompts, identity)
        verdicts = [dict(verdict) for verdict in judge(answers)]
        write_exchanges(out / f"{name}.jsonl", answers)
        write_rows(out / f"{name}-verdicts.jsonl", verdicts)
        figures[name] = share_figures(verdicts)
    return {"n": len(prompts), **figures}


def gate(work: Work, out: Path) -> Result:
    """Compares the candidate, alone, with the upstream that is served."""
    folder = work.folders["evaluate_upstream"]
    before, after = (fully_right(read_verdicts(folder, name)) for name in ("before", "after"))
    return decided(work, out, [superiority_gate("upstream alone", before, after)])


def read_verdicts(folder: Path, name: str) -> list[dict[str, bool]]:
    """What the judge said of the answers that `evaluate` left under this name."""
    with (folder / f"{name}-verdicts.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def decided(work: Work, out: Path, gates: Sequence[GateResult]) -> Result:
    """What a gate stage leaves: its decisions, and how the round ends where one of them is not to promote."""
    for one in gates:
        work.say(f"gate {one.name}: {'passed' if one.passed else 'refused'}, {one.reason}")
    rows = [asdict(one) for one in gates]
    write_rows(out / "gates.jsonl", rows)
    refused = [one for one in gates if not one.passed]
    ends = {"ends": ["rejected", "; ".join(f"{one.name}: {one.reason}" for one in refused)]} if refused else {}
    return {"gates": rows, **ends}


def _text_order(pair: Pair) -> tuple[object, ...]:
    return ([(turn.role, turn.text) for turn in pair.turns], pair.rejected, pair.chosen, pair.correction_id)
