"""How much memory a training will take, known before it starts, from `config.json` and the settings alone.

It is an estimate: activations follow Korthikanti et al. 2022 (arXiv 2205.05198, section 4) without the attention matrix,
which fused attention never keeps; the logits exist in tiles only, as TRL's fused head makes them. What the interpreter and
the libraries take themselves is not part of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner_chain.errors import ConfigurationError
from bootstrap.sft import device_batch
from bootstrap.upstream.settings import DPOSettings

if TYPE_CHECKING:
    from torch import nn

_NF4_BYTES = 0.5 + 4 / 64  # four bits for a weight, and a scale of fp32 for each 64 of them
_TILE_TOKENS, _TILE_WORDS = 4096, 32768  # of TRL's fused head
_TILES = 3  # logits, their gradient, and what is exchanged between them
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """What one device holds at the peak of a training, in bytes."""

    weights: int
    reference: int
    adapter: int
    gradients: int
    optimiser: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    def __str__(self) -> str:
        parts = sorted(asdict(self).items(), key=lambda part: -part[1])
        return f"{_gib(self.total)} ({', '.join(f'{name} {_gib(size)}' for name, size in parts if size)})"


def estimate_memory(base: Path, settings: DPOSettings, *, longest: int, cuda: bool, shards: int = 1) -> MemoryEstimate:
    """What a training by preferences takes on each device.

    Args:
        base: a model folder; its `config.json` is read and no weight.
        settings: batch, accumulation, adapters, quantisation and start count.
        longest: the most tokens of a prompt and an answer together.
        cuda: whether it trains on a GPU: in bf16, with activations made again instead of kept.
        shards: over how many devices weights, gradients and optimiser states are divided (FSDP, ZeRO-3); 1 where each
            has all of them.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base)
    model = _skeleton(config)
    width = (config.dtype or _default_dtype()).itemsize
    all_weights = sum(parameter.numel() for parameter in model.parameters())
    linear = sum(one.weight.numel() for _, one in _linears(model))
    adapter = _adapter_weights(model, settings)
    trained, trained_width = (adapter, 4) if settings.lora is not None else (all_weights, width)
    weights = all_weights * width
    if settings.quantized:
        weights = int((all_weights - linear) * width + linear * _NF4_BYTES)
    copies = int(settings.lora is None or settings.start == "anchor")
    if settings.lora is not None and settings.start == "continue":
        adapter *= 2  # a frozen copy of the parent's is the reference
    text = config.get_text_config()
    # Each row is two answers; the reference is run on them too, and keeps nothing.
    tokens = 2 * device_batch(settings) * longest
    return MemoryEstimate(
        weights=weights // shards,
        reference=copies * weights // shards,
        adapter=4 * adapter // shards,
        gradients=trained * trained_width // shards,
        optimiser=2 * trained * trained_width // shards,
        activations=tokens * _activation_numbers(text, checkpointed=cuda) * (2 if cuda else 4),
        logits=_TILES * 4 * min(tokens, _TILE_TOKENS) * min(text.vocab_size, _TILE_WORDS),
    )


def check_memory(estimate: MemoryEstimate, *, cuda: bool) -> None:
    """Refuses a training that will not fit.

    Raises:
        ConfigurationError: the estimate exceeds what the device has free; the message names the ways out.
    """
    free = free_memory(cuda=cuda)
    if estimate.total <= free:
        return
    message = (
        f"This training needs about {estimate}, and {_gib(free)} are free. Ways out, the cheapest first:\n"
        "  accumulate = 4           the same rows per step, a quarter of them at once\n"
        "  max_length = 1024        leaves out the pairs that are longer\n"
        "  batch = 8                fewer rows per step\n"
        "  lora = {r = 8, ...}      adapters instead of all weights, or smaller ones\n"
        '  quantized = "4bit"       the frozen weights at a quarter of their size (CUDA, bitsandbytes)\n'
        "  or several devices: an accelerate configuration with FSDP or DeepSpeed.\n"
        "It is an estimate. If you know better:  memory_check = false"
    )
    raise ConfigurationError(message)


def free_memory(*, cuda: bool) -> int:
    """The bytes that are free on the GPU, or for this process beside the others, within its container's limit."""
    if cuda:
        import torch

        return int(torch.cuda.mem_get_info()[0])
    import psutil

    return min(int(psutil.virtual_memory().available), *_container_limits(), 1 << 62)


def _container_limits() -> Iterator[int]:
    for name in _CGROUP_LIMITS:
        path = Path(name)
        if path.is_file() and (text := path.read_text(encoding="ascii").strip()).isdigit():
            yield int(text)


def _skeleton(config: Any) -> nn.Module:
    """The model without any weight: every tensor has a shape and nothing in it."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model


def _linears(model: Any) -> Iterator[tuple[str, Any]]:
    """The linear layers that adapters and quantisation take: all but the head."""
    from torch import nn

    head = model.get_output_embeddings()
    yield from ((name, one) for name, one in model.named_modules() if isinstance(one, nn.Linear) and one is not head)


def _adapter_weights(model: Any, settings: DPOSettings) -> int:
    if settings.lora is None:
        return 0
    rank, targets = settings.lora.get("r", 8), settings.lora.get("target_modules", "all-linear")
    return sum(
        rank * (one.in_features + one.out_features)
        for name, one in _linears(model)
        if isinstance(targets, str) or name.rpartition(".")[2] in targets
    )


def _activation_numbers(config: Any, *, checkpointed: bool) -> int:
    """How many numbers are kept for each token until the backward pass.

    A layer keeps about fourteen times its width around attention and norms, and four times the width of its MLP, whose
    gate, projection, activation and product are all needed again. Checkpointed layers keep what goes into them; one is
    made again at a time.
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    inner = 14 * hidden + 4 * (getattr(config, "intermediate_size", None) or 4 * hidden)
    return int(layers * hidden + inner if checkpointed else layers * inner)


def _default_dtype() -> Any:
    import torch

    return torch.float32


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"
