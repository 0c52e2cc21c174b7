"""How the upstream is trained: one value that says all, checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

from aligner_chain.errors import ConfigurationError
from bootstrap.fields import POSITIVE, require_fields
from bootstrap.sft import TrainingSettings

LORA = MappingProxyType({"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"})

Collator = Literal["auto", "edits", "whole"]
Start = Literal["fresh", "continue", "anchor"]
Quantized = Literal["4bit"]

_ZERO_ON_EQUAL = frozenset({"sigmoid", "ipo", "sigmoid_norm", "sft"})
"""Losses of TRL to which a pair of two equal answers is either nothing or plain fine-tuning, so that it can replay."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DPOSettings(TrainingSettings):
    """How the upstream is trained. The defaults suit adapters on models of a billion parameters and more.

    `beta` is the strength of the pull towards the reference; `loss_weights` weigh the sigmoid loss and the mean negative
    log-likelihood of the chosen answer. `lora` goes to PEFT's `LoraConfig`; None trains all weights, which tiny models
    need. `chosen_only` leaves the preference out and is plain SFT on the chosen answers, the row to compare with.

    Args:
        collator: "edits" puts the preference on the edited tokens and one behind each edit, "whole" on all of both
            answers, and "auto" decides for each pair: edits where at least half of the tokens are common, the whole of a
            rewrite. The likelihood is always that of the whole chosen answer, so that what is copied is held.
        start: "fresh" starts from the base, which is also the reference, so that rounds cannot drift. "continue" goes on
            with the parent's weights and refers to a frozen copy of them; "anchor" goes on with them too and refers to
            the base.
        replay: the share of all rows that are replayed right answers, where there are any, between 0 and 1 (excluded).
        age_discount: the probability to keep a pair falls by this factor with each later version of its upstream.
        max_age: pairs whose upstream has more later versions than this are left out; None keeps all.
        max_length: pairs whose prompt and answer have more tokens than this are left out; None keeps all that the model's
            window has room for.
        quantized: "4bit" loads the frozen base in NF4 (QLoRA, arXiv 2305.14314); it needs CUDA and bitsandbytes.
        memory_check: whether training is refused where the estimate exceeds the memory that is free.

    Raises:
        ConfigurationError: settings contradict each other or are out of range.
    """

    epochs: float = 1.0
    learning_rate: float = 5e-6
    warmup: float = 0.1
    beta: float = 0.1
    loss_weights: tuple[float, float] = (1.0, 1.0)
    lora: Mapping[str, Any] | None = field(default_factory=lambda: LORA)
    chosen_only: bool = False
    collator: Collator = "auto"
    start: Start = "fresh"
    replay: float = 0.1
    age_discount: float = 1.0
    max_age: int | None = None
    max_length: int | None = None
    quantized: Quantized | None = None
    memory_check: bool = True

    def __post_init__(self) -> None:
        TrainingSettings.__post_init__(self)  # a dataclass with slots has no super() of its own
        require_fields(self, beta=POSITIVE)
        self._require_known()
        if not 0 <= self.replay < 1 or not 0 < self.age_discount <= 1:
            message = (
                f"replay is {self.replay} and age_discount {self.age_discount}; replay must be at least 0 and below 1, "
                "age_discount above 0 and at most 1."
            )
            raise ConfigurationError(message)
        for name, least in (("max_age", 0), ("max_length", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigurationError(f"{name} is {value} and must be at least {least}, or left out.")
        self._require_agreement()

    def _require_known(self) -> None:
        for name, kind in (("collator", Collator), ("start", Start)):
            if getattr(self, name) not in get_args(kind):
                raise ConfigurationError(f"{name} is {getattr(self, name)!r}, not one of {', '.join(get_args(kind))}.")
        if self.quantized not in (None, *get_args(Quantized)):
            raise ConfigurationError(f'quantized is {self.quantized!r}; it can be "4bit" or left out.')

    def _require_agreement(self) -> None:
        if self.quantized and self.lora is None:
            raise ConfigurationError(
                "Quantized weights cannot be trained themselves: give lora, or leave quantized out."
            )
        if self.chosen_only and (self.start != "fresh" or self.quantized):
            raise ConfigurationError(
                'chosen_only trains all weights from the base: it needs start="fresh", not quantized.'
            )
        if "max_length" in self.extra:
            raise ConfigurationError("TRL would cut answers at extra.max_length; max_length leaves them out, whole.")
        if self.extra.get("precompute_ref_log_probs") and self.collator != "whole":
            # TRL keeps them under a hash of data and weights; a mask of ours would get what was summed without it.
            message = (
                "precompute_ref_log_probs sums whole answers and the edit-span collator does not, so they cannot be used "
                'together. Leave it out of extra, or set collator = "whole".'
            )
            raise ConfigurationError(message)

    def can_replay(self) -> bool:
        """Whether equal answers do what replay needs under the losses that `extra` may have put in place of ours."""
        losses = self.extra.get("loss_type", ("sigmoid", "sft"))
        losses = {losses} if isinstance(losses, str) else set(losses)
        return "sft" in losses and losses <= _ZERO_ON_EQUAL
