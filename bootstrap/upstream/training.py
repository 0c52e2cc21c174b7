"""The training itself: TRL's trainer on rows of token ids, and the folder that comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bootstrap.pairs import Pair
from bootstrap.sft import Row, gathered, quiet_network, run_trainer, shards, train_rows
from bootstrap.upstream.loading import load_policy, window
from bootstrap.upstream.memory import check_memory, estimate_memory
from bootstrap.upstream.rows import Selection, select_rows
from bootstrap.upstream.settings import DPOSettings
from bootstrap.upstream.trainer import make_trainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedUpstream:
    """A trained candidate. `weights` are those gathered from all devices, None where the model holds them itself."""

    model: PreTrainedModel
    weights: Mapping[str, Any] | None = None


def train_upstream(
    base: Path,
    pairs: Sequence[Pair],
    workdir: Path,
    settings: DPOSettings,
    *,
    parent: Path | None = None,
    replay: Sequence[Pair] = (),
    progress: bool = False,
    resume: bool = False,
) -> PreTrainedModel:
    """Trains a candidate on `pairs` and returns it (a PEFT model with adapters).

    Args:
        base: the model folder that a fresh candidate starts from, and that adapters are made for.
        workdir: where checkpoints and `progress.jsonl` go.
        parent: the candidate to go on from where `settings.start` is not "fresh".
        replay: pairs whose chosen answer is right, against forgetting; see `select_rows`.

    Raises:
        TrainingDataError: no pair is left to train on.
        ConfigurationError: the settings do not fit the models, the device or its memory.
        TrainingFailedError: the loss is no number any more.
    """
    tokenizer = load_tokenizer(base)
    selection = select_rows(tokenizer, pairs, settings, replay=replay, window=window(base))
    return train_selected(
        base, tokenizer, selection, workdir, settings, parent=parent, progress=progress, resume=resume
    ).model


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder, with something to pad with."""
    quiet_network()
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def train_selected(
    base: Path,
    tokenizer: PreTrainedTokenizerFast,
    selection: Selection,
    workdir: Path,
    settings: DPOSettings,
    *,
    parent: Path | None = None,
    progress: bool = False,
    resume: bool = False,
) -> TrainedUpstream:
    """The second half of `train_upstream`, for who wants to see what was selected."""
    import torch

    cuda = torch.cuda.is_available()
    if settings.memory_check:
        estimate = estimate_memory(base, settings, longest=selection.longest, cuda=cuda, shards=shards())
        check_memory(estimate, cuda=cuda)
    if settings.chosen_only:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(base)
        rows = [Row(prompt=row["prompt_ids"], output=row["chosen_ids"]) for row in selection.rows]
        return TrainedUpstream(
            model=train_rows(model, tokenizer, rows, workdir, settings, progress=progress, resume=resume)
        )
    trainer = make_trainer(load_policy(base, parent, settings), tokenizer, selection.rows, workdir, settings)
    trained: PreTrainedModel = run_trainer(trainer, workdir, settings, resume=resume, progress=progress)
    return TrainedUpstream(model=trained.eval(), weights=gathered(trainer))


def save_model(model: Any, tokenizer_source: Path, folder: Path, *, weights: Mapping[str, Any] | None = None) -> None:
    """Writes a model, or only its adapter, with the tokenizer of `tokenizer_source` beside it, as safetensors.

    `weights` are written in the place of the model's own, where they were gathered from several devices.
    """
    from peft import PeftModel
    from transformers import AutoTokenizer

    given = {} if weights is None else {"state_dict": weights}
    if isinstance(model, PeftModel):
        # The frozen copy that a continued adapter refers to is one of its adapters, and is not published.
        model.save_pretrained(folder, selected_adapters=["default"], **given)
    else:
        model.save_pretrained(folder, **given)
    AutoTokenizer.from_pretrained(tokenizer_source).save_pretrained(folder)
