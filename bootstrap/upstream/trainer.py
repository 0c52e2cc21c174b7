"""TRL's `DPOTrainer`, made for rows of token ids: the preference looks at the edits, the likelihood at whole answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bootstrap.sft import trainer_arguments
from bootstrap.upstream.collator import ANSWER_MASK, LEAST_SIMILAR, EditSpanCollator

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch
    from transformers import PreTrainedTokenizerFast

    from bootstrap.upstream.loading import Policy
    from bootstrap.upstream.rows import IdRow
    from bootstrap.upstream.settings import DPOSettings


def make_trainer(
    policy: Policy, tokenizer: PreTrainedTokenizerFast, rows: Sequence[IdRow], workdir: Path, settings: DPOSettings
) -> Any:
    """The trainer of a policy on rows of token ids; `settings.extra` goes to its `DPOConfig` and wins.

    TRL has one mask for all its losses. Under the edits' mask its likelihood term would let go of all that is copied,
    and a model trained hard then forgets how to copy. So where that mask is used the term is computed here.
    """
    from datasets import Dataset
    from trl import DPOConfig

    preference, likelihood = settings.loss_weights
    split = settings.collator != "whole" and "loss_type" not in settings.extra
    losses = {"sigmoid": preference} if split else {"sigmoid": preference, "sft": likelihood}
    own = {"loss_type": list(losses), "loss_weights": list(losses.values()), "beta": settings.beta, "max_length": None}
    arguments = {**trainer_arguments(workdir, settings), **own, **settings.extra}
    if "loss_type" in settings.extra and "loss_weights" not in settings.extra:
        arguments["loss_weights"] = None  # ours are for our losses
    return _class()(
        model=policy.model,
        ref_model=policy.reference,
        args=DPOConfig(**arguments),
        data_collator=_collator(tokenizer, settings, split),
        train_dataset=Dataset.from_list([dict(row) for row in rows]),
        processing_class=tokenizer,
        peft_config=policy.adapter,
        likelihood=likelihood if split else 0.0,
    )


def _collator(tokenizer: PreTrainedTokenizerFast, settings: DPOSettings, split: bool) -> Any:
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    whole = DataCollatorForPreference(
        pad_token_id=tokenizer.pad_token_id, pad_to_multiple_of=settings.extra.get("pad_to_multiple_of")
    )
    if settings.collator == "whole":
        return whole
    return EditSpanCollator(whole, LEAST_SIMILAR if settings.collator == "auto" else 0.0, keep_answers=split)


class _Watched:
    """A model that is asked for the log-probabilities of whole answers, and hands on those of the edits.

    `answers` keeps the others: float tensor of (2 * rows, tokens - 1), the chosen answers first.
    """

    def __init__(self, model: Any, inputs: Mapping[str, torch.Tensor], answer_mask: torch.Tensor) -> None:
        self._model = model
        self._labels = inputs["input_ids"].masked_fill(answer_mask == 0, -100)
        self._edits = inputs["completion_mask"][:, 1:]
        self.answers: Any = None

    def __call__(self, **arguments: Any) -> Any:
        outputs = self._model(**{**arguments, "labels": self._labels})
        self.answers = outputs.log_probs[:, -self._edits.shape[1] :]
        outputs.log_probs = self.answers * self._edits
        return outputs


def _class() -> Any:
    from trl import DPOTrainer

    class IdsDPOTrainer(DPOTrainer):  # type: ignore[misc]
        def __init__(self, *args: Any, likelihood: float, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._likelihood = likelihood

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            """Takes token ids as they are: TRL would tokenise text, in which a user's words can be control tokens."""
            return dataset

        def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
            if ANSWER_MASK not in inputs:
                return super()._compute_loss(model, inputs, return_outputs)
            inputs = dict(inputs)
            answer_mask = inputs.pop(ANSWER_MASK)
            watched = _Watched(model, inputs, answer_mask)
            preference = super()._compute_loss(watched, inputs, return_outputs=False)
            chosen, kept = watched.answers.chunk(2)[0], answer_mask[:, 1:].chunk(2)[0].bool()
            return preference - self._likelihood * chosen[kept].mean()

    return IdsDPOTrainer
