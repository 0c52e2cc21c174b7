"""Settings to begin with for an Aligner of some size, trained whole, by adapters, or by adapters on a base in four bits.

    0.5b  2b  3b  7b  13b      each  -full  -lora  -qlora        such as 7b-qlora

`full` is the recipe of the Aligner paper (Ji et al. 2024, arXiv 2402.02416, table 15, the same there for 2B, 7B and 13B): three
passes at 2e-5 with a cosine and 3 % of warm-up, 256 rows a step, AdamW with betas 0.9 and 0.95, no weight decay, gradients
clipped at 1. `lora` and `qlora` are QLoRA's for 7B and 13B (Dettmers et al. 2023, arXiv 2305.14314, table 9 and appendix B): rank
64 on all linear layers, alpha 16, dropout 0.1, 2e-4, 16 rows a step, clipped at 0.3. That small batches suit adapters and that
they want about ten times the rate of full training is also what TRL's guide says ("LoRA Without Regret",
https://huggingface.co/docs/trl/main/en/lora_without_regret). Nobody has published values for Aligners by adapters, or any for
0.5B and 3B: those are taken over. Rows at once on a GPU are for 2,048 tokens, the paper's limit, and 80 GB; `plan` says what they take.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from aligner_chain.errors import ConfigurationError
from bootstrap.aligner_training import AlignerTrainingSettings
from bootstrap.sft import TrainingSettings

Method = Literal["full", "lora", "qlora"]

_LORA = MappingProxyType(
    {"r": 64, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
)
_PAPER = MappingProxyType({"adam_beta2": 0.95, "max_grad_norm": 1.0})
_QLORA = MappingProxyType({"adam_beta2": 0.999, "max_grad_norm": 0.3})


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """How an Aligner of a size is trained.

    `batch` counts rows of a step over all processes, `at_once` those that one device has in memory. Activations are made
    again in the backward pass (`checkpointing`), in bf16 on a GPU and fp32 on a CPU. `config` is a configuration of
    `accelerate launch` under which it fits on GPUs of 80 GB.
    """

    name: str
    method: Method
    learning_rate: float
    batch: int
    at_once: int
    checkpointing: bool
    config: str

    def settings(self, *, processes: int = 1, **changes: Any) -> AlignerTrainingSettings:
        """The settings for so many processes; `changes` go to both stages.

        Raises:
            ConfigurationError: the rows of a step cannot be divided among the processes.
        """
        full = self.method == "full"
        extra: Mapping[str, Any] = {
            **(_PAPER if full else _QLORA),
            "gradient_checkpointing": self.checkpointing,
        }
        stage = {
            "batch": self.batch,
            "accumulate": self._parts(changes.get("batch", self.batch), processes),
            "learning_rate": self.learning_rate,
            "extra": extra,
            **changes,
        }
        warm = TrainingSettings(**{**stage, "epochs": 1.0})
        return AlignerTrainingSettings(
            warm_up=warm,
            correction=TrainingSettings(**stage),
            lora=None if full else dict(_LORA),
            quantized="4bit" if self.method == "qlora" else None,
        )

    def _parts(self, batch: int, processes: int) -> int:
        """In how many parts each process takes its rows of a step, so that no more are in memory than fit."""
        if batch % processes:
            raise ConfigurationError(
                f"{batch} rows a step cannot be divided among {processes} processes. Set batch to a multiple of them."
            )
        mine = batch // processes
        return next(parts for parts in range(1, mine + 1) if mine % parts == 0 and mine // parts <= self.at_once)


def _presets() -> dict[str, Preset]:
    found = {}
    for size, whole, adapters, fits in (
        ("0.5b", 16, 16, "ddp"),
        ("2b", 4, 8, "ddp"),
        ("3b", 4, 8, "ddp"),
        ("7b", 4, 4, "fsdp2"),
        ("13b", 2, 4, "fsdp2"),
    ):
        for method in ("full", "lora", "qlora"):
            full = method == "full"
            name = f"{size}-{method}"
            found[name] = Preset(
                name=name,
                method=method,
                learning_rate=2e-5 if full else 2e-4,
                batch=256 if full else 16,
                at_once=whole if full else adapters,
                checkpointing=True,
                config=fits if full else "ddp",
            )
    return found


PRESETS: Mapping[str, Preset] = MappingProxyType(_presets())


def preset(name: str) -> Preset:
    """The preset of a name, such as "7b-qlora"; 1.5b is as 2b, 8b as 7b.

    Raises:
        ConfigurationError: there is none.
    """
    size, _, method = name.lower().partition("-")
    found = PRESETS.get(f"{ {'1.5b': '2b', '8b': '7b'}.get(size, size) }-{method}")
    if found is None:
        raise ConfigurationError(f"There is no preset {name!r}. There are {', '.join(PRESETS)}.")
    return found
