"""Direct preference optimisation of the upstream (Rafailov et al. 2023, arXiv 2305.18290): pairs in, candidate out.

The chosen answer is mostly a copy of the rejected one. On such pairs the sigmoid loss alone lowers the likelihood of
both (Pal et al. 2024, arXiv 2402.13228), so the likelihood of the chosen answer is part of the loss by default
(Pang et al. 2024, arXiv 2404.19733).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from aligner_chain.templates import chat_prompt, encode
from bootstrap.pairs import Pair
from bootstrap.sft import Row, TrainingSettings, quiet_network, run_trainer, train_rows, trainer_arguments

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

LORA = MappingProxyType({"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"})


@dataclass(frozen=True, kw_only=True, slots=True)
class DPOSettings(TrainingSettings):
    """How the upstream is trained. The defaults suit adapters on models of a billion parameters and more.

    `beta` is the strength of the pull towards the reference; `loss_weights` weigh the sigmoid loss and the mean negative
    log-likelihood of the chosen answer. `lora` goes to PEFT's `LoraConfig`; None trains all weights, which tiny models
    need. `chosen_only` leaves the preference out and is plain SFT on the chosen answers, the row to compare with.
    """

    epochs: float = 1.0
    learning_rate: float = 5e-6
    warmup: float = 0.1
    beta: float = 0.1
    loss_weights: tuple[float, float] = (1.0, 1.0)
    lora: Mapping[str, Any] | None = field(default_factory=lambda: LORA)
    chosen_only: bool = False


def train_upstream(
    base: Path,
    pairs: Sequence[Pair],
    workdir: Path,
    settings: DPOSettings,
    *,
    progress: bool = False,
    resume: bool = False,
) -> PreTrainedModel:
    """Trains a fresh candidate from the model folder `base` on `pairs` and returns it (a PEFT model with adapters).

    The reference is `base` itself, so that rounds do not drift. `workdir` holds checkpoints.
    """
    quiet_network()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    if settings.chosen_only:
        rows = [Row(prompt=row["prompt_ids"], output=row["chosen_ids"]) for row in preference_rows(tokenizer, pairs)]
        return train_rows(model, tokenizer, rows, workdir, settings, progress=progress, resume=resume)
    return _train_dpo(model, tokenizer, pairs, workdir, settings, progress=progress, resume=resume)


def preference_rows(tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair]) -> list[dict[str, tuple[int, ...]]]:
    """Pairs as token ids: the conversation under the model's chat template, and each answer with its end."""
    end = (tokenizer.eos_token_id,)
    return [
        {
            "prompt_ids": chat_prompt(tokenizer, pair.turns),
            "chosen_ids": encode(tokenizer, pair.chosen) + end,
            "rejected_ids": encode(tokenizer, pair.rejected) + end,
        }
        for pair in pairs
    ]


def _train_dpo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[Pair],
    workdir: Path,
    settings: DPOSettings,
    *,
    progress: bool,
    resume: bool,
) -> PreTrainedModel:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    class IdsDPOTrainer(DPOTrainer):  # type: ignore[misc]
        """Takes rows of token ids as they are: TRL would tokenise text, in which a user's words can be control tokens."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    own = {
        "loss_type": ["sigmoid", "sft"],
        "loss_weights": list(settings.loss_weights),
        "beta": settings.beta,
        "max_length": None,
    }
    lora: LoraConfig | None = LoraConfig(**settings.lora) if settings.lora is not None else None
    trainer = IdsDPOTrainer(
        model=model,
        # With adapters the reference is the model without them.
        ref_model=None if lora else copy.deepcopy(model),
        args=DPOConfig(**{**trainer_arguments(workdir, settings), **own, **settings.extra}),
        train_dataset=Dataset.from_list(preference_rows(tokenizer, pairs)),
        processing_class=tokenizer,
        peft_config=lora,
    )
    trained: PreTrainedModel = run_trainer(trainer, workdir, settings, resume=resume, progress=progress)
    return trained.eval()


def save_model(model: Any, tokenizer_source: Path, folder: Path) -> None:
    """Writes a model, or only its adapter, with the tokenizer of `tokenizer_source` beside it, as safetensors."""
    from peft import PeftModel
    from transformers import AutoTokenizer

    if isinstance(model, PeftModel):
        model.save_pretrained(folder, selected_adapters=["default"])
    else:
        model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_source).save_pretrained(folder)
