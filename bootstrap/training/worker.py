"""The process that trains: `python -m bootstrap.training.worker job.json`, started by `accelerate launch`.

It ends with its caller: the caller holds the other end of its standard input, which closes however the caller dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner_chain.checkpoint import FILE, AlignerMetadata, read_metadata, write_metadata
from aligner_chain.errors import ConfigurationError
from aligner_chain.templates import get_template, prepare_tokenizer
from bootstrap.aligner_training import (
    AlignerRows,
    AlignerTrainingSettings,
    add_template_tokens,
    aligner_rows,
    train_stages,
)
from bootstrap.files import file_sha256, replace_file, sync_tree, write_synced
from bootstrap.journal import JOURNAL, STEPS, attempts, done_again, read_lines
from bootstrap.pairs import Triple, manifest, read_pairs, read_triples
from bootstrap.sft import merged, processes, quiet_network, shards
from bootstrap.training.estimating import estimate_aligner
from bootstrap.training.failures import describe
from bootstrap.training.jobs import ERROR, FIGURES, LIFELINE, PROCESSES, TrainingJob
from bootstrap.upstream import DPOSettings, check_memory, save_model, select_rows, train_selected
from bootstrap.upstream.loading import quantisation, weights_dtype, window
from bootstrap.upstream.training import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def main(arguments: list[str]) -> int:
    """Does the job that a file describes; the exit status is 0 or, with `error.json` in the work folder, 1."""
    if os.environ.get(LIFELINE):
        threading.Thread(target=_end_with_caller, name="lifeline", daemon=True).start()
    job = TrainingJob.read(Path(arguments[0]))
    try:
        _require_company()
        train(job)
    except Exception as error:  # noqa: BLE001 - whatever it is, the caller must be told
        traceback.print_exc()
        _tell(job.work / ERROR, error)
        return 1
    return 0


def train(job: TrainingJob, *, progress: bool = False) -> dict[str, Any]:
    """Trains, from the newest whole checkpoint on, and puts the model at `job.out`; returns the figures of it.

    `progress` shows a line on the terminal.

    The model is written beside its place, synced and then renamed, after `figures.json` in the work folder. Of several
    processes the first one writes, and the others return nothing: what it writes may not be there yet to be read.
    """
    quiet_network()
    started = time.monotonic()
    part = job.out.with_name(f".{job.out.name}.part")
    if _first():
        shutil.rmtree(part, ignore_errors=True)
    figures = (
        _train_upstream(job, job.settings, part, progress=progress)
        if isinstance(job.settings, DPOSettings)
        else _train_aligner(job, part, progress=progress)
    )
    if not _first():
        return {}
    figures = {**figures, **_trainings(job.work), "seconds": round(time.monotonic() - started, 3)}
    sync_tree(part)
    staged = job.work / f"{FIGURES}.new"
    write_synced(staged, json.dumps(figures, indent=1))
    replace_file(job.work / FIGURES, staged)
    job.out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(job.out, part)
    return figures


def _train_upstream(job: TrainingJob, settings: DPOSettings, part: Path, *, progress: bool) -> dict[str, Any]:
    tokenizer = load_tokenizer(job.base)
    replay = read_pairs(job.replay) if job.replay else ()
    selection = select_rows(tokenizer, read_pairs(job.data), settings, replay=replay, window=window(job.base))
    trained = train_selected(
        job.base,
        tokenizer,
        selection,
        job.work / "dpo",
        settings,
        parent=job.parent,
        progress=progress,
        resume=True,
    )
    if _first():
        save_model(trained.model, job.base, part, weights=trained.weights)
    return {
        "rows": len(selection.rows),
        "replayed": selection.replayed,
        "dropped": dict(selection.dropped),
        "longest_tokens": selection.longest,
    }


def _train_aligner(job: TrainingJob, part: Path, *, progress: bool) -> dict[str, Any]:
    settings = job.settings
    if not isinstance(settings, AlignerTrainingSettings):
        raise ConfigurationError(f"An aligner is not trained with {type(settings).__name__}.")
    if settings.lora and shards() > 1:
        message = (
            "Adapters are merged into the Aligner's weights, which FSDP and DeepSpeed would divide. Train adapters with "
            'config = "ddp", where each GPU has the frozen weights, or all weights: lora = false, or a preset such as 7b-full.'
        )
        raise ConfigurationError(message)
    triples, tokenizer = read_triples(job.data), aligner_tokenizer(job.base, settings)
    rows = aligner_rows(tokenizer, triples, window(job.base), settings)
    if settings.memory_check:
        cuda = _on_gpu()
        check_memory(estimate_aligner(job.base, rows, settings, cuda=cuda, shards=shards()).memory, cuda=cuda)
    model = _aligner_base(job.base, settings, quantized=bool(settings.quantized))
    trained = train_stages(model, tokenizer, rows, job.work, settings, resume=True, progress=progress)
    if _first():
        model = _onto_whole_weights(trained.model, job, settings) if settings.quantized else trained.model
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        # Last, since its presence makes the folder an Aligner.
        write_metadata(part, _metadata(job, settings, triples, rows, version=_version(part)))
    return {"rows": trained.rows, "keep_share": trained.keep_share, "dropped": dict(trained.dropped)}


def aligner_tokenizer(base: Path, settings: AlignerTrainingSettings) -> PreTrainedTokenizerFast:
    """The tokenizer of a base as its Aligner will have it, with the tokens of our own template."""
    tokenizer = load_tokenizer(base)
    if settings.template == "aligner-chain/1":
        prepare_tokenizer(tokenizer)
    return tokenizer


def _aligner_base(base: Path, settings: AlignerTrainingSettings, *, quantized: bool) -> Any:
    """The model to start from, with the tokens of the template."""
    from transformers import AutoModelForCausalLM

    how = quantisation() if quantized else {"dtype": weights_dtype(trained=not settings.lora)}
    model = AutoModelForCausalLM.from_pretrained(base, **how)
    if settings.template == "aligner-chain/1":
        add_template_tokens(model, load_tokenizer(base))
    return model


def _onto_whole_weights(adapted: Any, job: TrainingJob, settings: AlignerTrainingSettings) -> Any:
    """The adapters of a quantised base, merged into its weights as they are stored: four bits would round them away."""
    from peft import PeftModel

    folder = job.work / "adapter"
    adapted.save_pretrained(folder)
    base = _aligner_base(job.base, settings, quantized=False)
    return merged(PeftModel.from_pretrained(base, folder))


def _metadata(
    job: TrainingJob, settings: AlignerTrainingSettings, triples: list[Triple], rows: AlignerRows, *, version: str
) -> AlignerMetadata:
    digest, longest = manifest(triples)["sha256"], max(len(row.output) for row in rows.stages["correction"])
    if (job.base / FILE).is_file():
        known = read_metadata(job.base)
        # A threshold that was measured on the base says nothing of what came of it.
        new: dict[str, Any] = {"version": version, "data_sha256": digest, "calibrations": {}}
        return replace(known, longest_output=max(longest, known.longest_output), **new)
    template = get_template(settings.template)
    return AlignerMetadata(
        name="aligner",
        version=version,
        template=template.name,
        template_text=template.text,
        criteria=tuple(dict.fromkeys(name for triple in triples for name in triple.criteria)),
        longest_output=longest,
        base_model=str(job.base),
        data_sha256=digest,
    )


def _version(folder: Path) -> str:
    """Twelve digits of what the weights hash to: the same rows make another Aligner with other settings."""
    weights = [file_sha256(path) for path in sorted(folder.glob("*.safetensors"))]
    return sha256(" ".join(weights).encode()).hexdigest()[:12]


def _trainings(work: Path) -> dict[str, Any]:
    """Of each training below the work folder, by the name of its own: steps, last loss, and what it was resumed at.

    `last_right` is the share of the tokens of the last steps that the model gave the most weight to, None for DPO.
    `resumed_at` and `again` have a number for each time that it went on: the step after which it did, and how many steps
    were done a second time.
    """
    found = {}
    for path in sorted(work.glob(f"*/{JOURNAL}")):
        lines: list[Mapping[str, Any]] = list(read_lines(path))
        losses = [line["loss"] for line in lines if "loss" in line]
        right = [line["mean_token_accuracy"] for line in lines if "mean_token_accuracy" in line]
        tries = attempts(path.with_name(STEPS))
        found[path.parent.name] = {
            "steps": lines[-1]["step"],
            "last_loss": losses[-1] if losses else None,
            "last_right": right[-1] if right else None,
            "resumed_at": [one.begun for one in tries[1:]],
            "again": done_again(tries),
        }
    return {"trainings": found}


def _require_company() -> None:
    """Refuses to train with other processes than were asked for: each would take its batches for a part of the whole.

    `accelerate launch --cpu --num_processes 2`, as does a configuration of MULTI_CPU, starts one process where there is no
    mpirun, and says nothing.
    """
    wanted, found = int(os.environ.get(PROCESSES, processes())), processes()
    if wanted != found:
        message = (
            f"{wanted} processes should train together, and accelerate started {found}. Its --cpu starts one; leave it out "
            'and take config = "ddp", which takes CPUs too, or set processes to what the configuration starts.'
        )
        raise ConfigurationError(message)


def _tell(path: Path, error: Exception) -> None:
    """Writes down the first error of any process: it is the cause, and the others fail because that one is gone."""
    with contextlib.suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
        file.write(json.dumps(describe(error)))
        file.flush()
        os.fsync(file.fileno())


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _first() -> bool:
    """Whether this is the one process that writes."""
    return os.environ.get("RANK", "0") == "0"


def _end_with_caller() -> None:
    # Past Python's buffer, whose lock a thread that waits would hold when the interpreter ends: that aborts the process.
    while os.read(0, 1024):
        pass
    # At once, even from amidst a checkpoint: nothing must go on that nobody waits for.
    os._exit(1)


def _end(status: int) -> None:
    """Ends this process, past what the interpreter does at its own end.

    There a C++ thread that still wants the interpreter's lock, of gloo or of the reducer, aborts it ("terminate called without
    an active exception"). It was seen of a second process whose work was done; torchrun then ends the first, which writes.
    """
    if status == 0 and processes() > 1:
        from torch import distributed

        distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _end(main(sys.argv[1:]))
