"""The process that trains: `python -m bootstrap.training.worker job.json`, started by `accelerate launch`.

It ends with its caller: the caller holds the other end of its standard input, which closes however the caller dies.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from aligner_chain.checkpoint import FILE, AlignerMetadata, read_metadata, write_metadata
from aligner_chain.errors import ConfigurationError
from aligner_chain.templates import get_template
from bootstrap.aligner_training import AlignerTrainingSettings, add_template_tokens, train_aligner
from bootstrap.files import replace_file, sync_tree, write_synced
from bootstrap.journal import JOURNAL, STEPS, attempts, done_again, read_lines
from bootstrap.pairs import Triple, manifest, read_pairs, read_triples
from bootstrap.sft import quiet_network, shards
from bootstrap.training.failures import describe
from bootstrap.training.jobs import ERROR, FIGURES, LIFELINE, TrainingJob
from bootstrap.upstream import DPOSettings, save_model, select_rows, train_selected
from bootstrap.upstream.training import load_tokenizer


def main(arguments: list[str]) -> int:
    """Does the job that a file describes; the exit status is 0 or, with `error.json` in the work folder, 1."""
    if os.environ.get(LIFELINE):
        threading.Thread(target=_end_with_caller, name="lifeline", daemon=True).start()
    job = TrainingJob.read(Path(arguments[0]))
    try:
        train(job)
    except Exception as error:  # noqa: BLE001 - whatever it is, the caller must be told
        traceback.print_exc()
        if _first():
            write_synced(job.work / ERROR, json.dumps(describe(error)))
        return 1
    return 0


def train(job: TrainingJob) -> dict[str, Any]:
    """Trains, from the newest whole checkpoint on, and puts the model at `job.out`; returns the figures of it.

    The model is written beside its place, synced and then renamed, after `figures.json` in the work folder.
    """
    quiet_network()
    started = time.monotonic()
    part = job.out.with_name(f".{job.out.name}.part")
    if _first():
        shutil.rmtree(part, ignore_errors=True)
    figures = (
        _train_upstream(job, job.settings, part) if isinstance(job.settings, DPOSettings) else _train_aligner(job, part)
    )
    figures = {**figures, **_trainings(job.work), "seconds": round(time.monotonic() - started, 3)}
    if _first():
        sync_tree(part)
        staged = job.work / f"{FIGURES}.new"
        write_synced(staged, json.dumps(figures, indent=1))
        replace_file(job.work / FIGURES, staged)
        job.out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(job.out, part)
    return figures


def _train_upstream(job: TrainingJob, settings: DPOSettings, part: Path) -> dict[str, Any]:
    tokenizer = load_tokenizer(job.base)
    replay = read_pairs(job.replay) if job.replay else ()
    selection = select_rows(tokenizer, read_pairs(job.data), settings, replay=replay)
    trained = train_selected(job.base, tokenizer, selection, job.work / "dpo", settings, parent=job.parent, resume=True)
    if _first():
        save_model(trained.model, job.base, part, weights=trained.weights)
    return {
        "rows": len(selection.rows),
        "replayed": selection.replayed,
        "dropped": dict(selection.dropped),
        "longest_tokens": selection.longest,
    }


def _train_aligner(job: TrainingJob, part: Path) -> dict[str, Any]:
    if shards() > 1:
        message = (
            "An Aligner's adapters are merged into its weights, which FSDP and DeepSpeed would divide. Train it with a "
            "launcher without them; several processes are fine."
        )
        raise ConfigurationError(message)
    if not isinstance(job.settings, AlignerTrainingSettings):
        raise ConfigurationError(f"An aligner is not trained with {type(job.settings).__name__}.")
    from transformers import AutoModelForCausalLM

    rows = read_triples(job.data)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(job.base), load_tokenizer(job.base)
    if job.settings.template == "aligner-chain/1":
        add_template_tokens(model, tokenizer)
    trained = train_aligner(model, tokenizer, rows, job.work, job.settings, resume=True)
    if _first():
        trained.model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        # Last, since its presence makes the folder an Aligner.
        write_metadata(part, _metadata(job, job.settings, rows))
    return {"rows": trained.rows, "keep_share": trained.keep_share, "dropped": dict(trained.dropped)}


def _metadata(job: TrainingJob, settings: AlignerTrainingSettings, rows: list[Triple]) -> AlignerMetadata:
    digest = manifest(rows)["sha256"]
    if (job.base / FILE).is_file():
        # A threshold that was measured on the base says nothing of what came of it.
        return replace(read_metadata(job.base), version=digest[:12], data_sha256=digest, calibrations={})
    template = get_template(settings.template)
    return AlignerMetadata(
        name="aligner",
        version=digest[:12],
        template=template.name,
        template_text=template.text,
        criteria=tuple(dict.fromkeys(name for row in rows for name in row.criteria)),
        base_model=str(job.base),
        data_sha256=digest,
    )


def _trainings(work: Path) -> dict[str, Any]:
    """Of each training below the work folder, by the name of its own: steps, last loss, and what it was resumed at.

    `resumed_at` and `again` have a number for each time that it went on: the step after which it did, and how many steps
    were done a second time.
    """
    found = {}
    for path in sorted(work.glob(f"*/{JOURNAL}")):
        lines: list[Mapping[str, Any]] = list(read_lines(path))
        losses = [line["loss"] for line in lines if "loss" in line]
        tries = attempts(path.with_name(STEPS))
        found[path.parent.name] = {
            "steps": lines[-1]["step"],
            "last_loss": losses[-1] if losses else None,
            "resumed_at": [one.begun for one in tries[1:]],
            "again": done_again(tries),
        }
    return {"trainings": found}


def _first() -> bool:
    """Whether this is the one process that writes."""
    return os.environ.get("RANK", "0") == "0"


def _end_with_caller() -> None:
    # Past Python's buffer, whose lock a thread that waits would hold when the interpreter ends: that aborts the process.
    while os.read(0, 1024):
        pass
    # At once, even from amidst a checkpoint: nothing must go on that nobody waits for.
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
