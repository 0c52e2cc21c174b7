"""The models of a training: what is trained, from where, and what it refers to."""

from __future__ import annotations

import copy
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner_chain.errors import ConfigurationError
from bootstrap.upstream.settings import DPOSettings

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """What TRL's trainer needs: the model, the adapter to make (None: none is new), and the reference.

    `reference` None means what TRL takes itself: the model without its new adapter, or a frozen copy of an old one.
    """

    model: PreTrainedModel
    adapter: LoraConfig | None
    reference: PreTrainedModel | None


def load_policy(base: Path, parent: Path | None, settings: DPOSettings) -> Policy:
    """Loads what `settings.start` names.

    Raises:
        ConfigurationError: `start` wants a parent and there is none, the parent is not of the kind that is trained, or
            quantisation is not possible here.
    """
    if settings.start == "fresh":
        model = _load(base, settings)
        if settings.lora is None:
            return Policy(model=model, adapter=None, reference=copy.deepcopy(model))
        from peft import LoraConfig

        return Policy(model=model, adapter=LoraConfig(**settings.lora), reference=None)
    parent = _parent(parent, settings)
    if settings.lora is not None:
        return _with_adapter(base, parent, settings)
    model = _load(parent, settings)
    return Policy(
        model=model,
        adapter=None,
        reference=copy.deepcopy(model) if settings.start == "continue" else _load(base, settings),
    )


def _with_adapter(base: Path, parent: Path, settings: DPOSettings) -> Policy:
    """The parent's adapter on the base. Without a reference of its own, TRL refers to a frozen copy of the adapter."""
    from peft import PeftModel

    # Adapters load frozen, and the trainer fails much later on weights that need no gradient.
    model = PeftModel.from_pretrained(_load(base, settings), parent, is_trainable=True)
    return Policy(model=model, adapter=None, reference=_load(base, settings) if settings.start == "anchor" else None)


def _parent(parent: Path | None, settings: DPOSettings) -> Path:
    if parent is None:
        message = f'start = "{settings.start}" goes on from a parent, and none was given. Give one, or start = "fresh".'
        raise ConfigurationError(message)
    if (parent / "adapter_config.json").is_file() != (settings.lora is not None):
        found, wanted = ("an adapter", "all weights") if settings.lora is None else ("no adapter", "an adapter")
        message = (
            f'start = "{settings.start}" is to train {wanted}, but the parent in {parent} is {found}. Set lora as it was '
            'when the parent was trained, or start = "fresh".'
        )
        raise ConfigurationError(message)
    return parent


def _load(folder: Path, settings: DPOSettings) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    if not folder.is_dir():
        raise ConfigurationError(f"There is no model folder {folder}. Give a folder with config.json and the weights.")
    how = quantisation() if settings.quantized else {"dtype": weights_dtype(trained=settings.lora is None)}
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, **how)
    return model


def window(base: Path) -> int:
    """The most tokens that a model reads, prompt and answer together; without end where its configuration names none."""
    from transformers import AutoConfig

    found = getattr(AutoConfig.from_pretrained(base).get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) else sys.maxsize


def weights_dtype(*, trained: bool) -> str:
    """How a model's weights are held in a training: in fp32 where they are trained themselves, else as they are stored.

    In bf16 a step of 2e-5 is lost on a weight above 0.01, since it is less than half of the distance to the next number.
    """
    return "float32" if trained else "auto"


def quantisation() -> dict[str, Any]:
    """How the weights are loaded in NF4 on the GPU of this process (Dettmers et al. 2023, arXiv 2305.14314)."""
    import torch
    from transformers import BitsAndBytesConfig

    if not torch.cuda.is_available():
        message = (
            'quantized = "4bit" needs an NVIDIA GPU, and PyTorch finds none here (torch.cuda.is_available() is False). '
            "Leave quantized out, or train on a machine with one."
        )
        raise ConfigurationError(message)
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigurationError('quantized = "4bit" needs bitsandbytes. Install it:  pip install bitsandbytes')
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    # Quantised weights cannot be moved afterwards, so each process loads them to where it trains.
    return {"quantization_config": config, "device_map": {"": int(os.environ.get("LOCAL_RANK", "0"))}}
