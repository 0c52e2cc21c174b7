"""How much memory a training will take, known before it starts, from `config.json` and the settings alone.

It is an estimate: activations follow Korthikanti et al. 2022 (arXiv 2205.05198, section 4) without the attention matrix,
which fused attention never keeps; the logits exist in tiles only, as TRL's fused head makes them. On the CPU the interpreter
and the libraries are part of it; on a GPU what CUDA takes for itself is not. `benchmarks/memory.py` compares it with what
trainings took.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
_TILES_CUDA = 3  # logits, their gradient, and what is exchanged between them
_TILES_CPU = 9  # there each operation of the gradient makes one more
_PROGRAM = (
    540 * 2**20
)  # an interpreter with torch, transformers, datasets and TRL, and what a first step leaves of its own
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
    program: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    def __str__(self) -> str:
        parts = sorted(asdict(self).items(), key=lambda part: -part[1])
        return f"{gib(self.total)} ({', '.join(f'{name} {gib(size)}' for name, size in parts if size)})"


def estimate_memory(
    base: Path, settings: DPOSettings, *, longest: int, cuda: bool, shards: int = 1, together: int | None = None
) -> MemoryEstimate:
    """What a training by preferences takes on each device.

    Args:
        base: a model folder; its `config.json` is read and no weight.
        settings: batch, accumulation, adapters, quantisation and start count.
        longest: the most tokens of a prompt and an answer together.
        cuda: whether it trains on a GPU: in bf16, with activations made again instead of kept.
        shards: over how many devices weights, gradients and optimiser states are divided (FSDP, ZeRO-3); 1 where each
            has all of them.
        together: how many processes divide a batch; None takes those that train now.
    """
    full = settings.lora is None
    return estimate_memory_of(
        base,
        lora=settings.lora,
        quantized=bool(settings.quantized),
        # Each row is two answers; the reference is run on them too, and keeps nothing.
        tokens=2 * device_batch(settings, together) * longest,
        references=int(full or settings.start == "anchor"),
        adapters=1 + int(not full and settings.start == "continue"),  # a frozen copy of the parent's is the reference
        checkpointed=bool(settings.extra.get("gradient_checkpointing", cuda)),
        cuda=cuda,
        shards=shards,
    )


def estimate_memory_of(
    base: Path,
    *,
    lora: Mapping[str, Any] | None,
    quantized: bool,
    tokens: int,
    cuda: bool,
    checkpointed: bool,
    shards: int = 1,
    references: int = 0,
    adapters: int = 1,
) -> MemoryEstimate:
    """What a training takes on each device that has `tokens` tokens in memory at once.

    Args:
        base: a model folder; its `config.json` is read and no weight.
        lora: the adapters that are trained; None trains all weights, which are held in fp32.
        quantized: whether the frozen weights are in four bits.
        tokens: of all rows that are run through the model together.
        cuda: whether it trains on a GPU, in bf16.
        checkpointed: whether activations are made again instead of kept.
        shards: over how many devices the model is divided.
        references: how many more models of the same size are there to compare with.
        adapters: how many adapters there are, of which one is trained.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base)
    model = _skeleton(config)
    all_weights = sum(parameter.numel() for parameter in model.parameters())
    adapter = _adapter_weights(model, lora)
    trained = all_weights if lora is None else adapter
    width = 4 if lora is None else (config.dtype or _default_dtype()).itemsize
    weights = all_weights * width
    if quantized:
        linear = sum(one.weight.numel() for _, one in _linears(model))
        weights = int((all_weights - linear) * width + linear * _NF4_BYTES)
    text = config.get_text_config()
    return MemoryEstimate(
        weights=weights // shards,
        reference=references * weights // shards,
        adapter=adapters * 4 * adapter // shards,
        gradients=4 * trained // shards,
        optimiser=8 * trained // shards,
        activations=tokens * _activation_numbers(text, checkpointed=checkpointed) * (2 if cuda else 4),
        logits=(_TILES_CUDA if cuda else _TILES_CPU)
        * 4
        * min(tokens, _TILE_TOKENS)
        * min(text.vocab_size, _TILE_WORDS),
        program=0 if cuda else _PROGRAM,
    )


def check_memory(estimate: MemoryEstimate, *, cuda: bool) -> None:
    """Refuses a training that will not fit.

    Raises:
        ConfigurationError: the estimate exceeds what the device has free; the message names the ways out.
    """
    free = free_memory(cuda=cuda)
    if estimate.total - estimate.program <= free:  # the program is running already
        return
    message = (
        f"This training needs about {estimate}, and {gib(free)} are free. Ways out, the cheapest first:\n"
        "  accumulate = 4           the same rows per step, a quarter of them at once\n"
        "  max_length = 1024        leaves out the pairs that are longer\n"
        "  batch = 8                fewer rows per step\n"
        "  lora = {r = 8, ...}      adapters instead of all weights, or smaller ones\n"
        '  quantized = "4bit"       the frozen weights at a quarter of their size (CUDA, bitsandbytes)\n'
        "  or several devices: an accelerate configuration with FSDP or DeepSpeed.\n"
        "It is an estimate. If you know better:  memory_check = false"
    )
    raise ConfigurationError(message)


def matrix_weights(base: Path) -> int:
    """How many weights of a model every token is multiplied with: all but the table of embeddings, which is looked up."""
    from transformers import AutoConfig

    model: Any = _skeleton(AutoConfig.from_pretrained(base))
    head = model.get_output_embeddings()
    layers = sum(int(one.weight.numel()) for _, one in _linears(model))
    return layers if head is None else layers + int(head.weight.numel())


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


def _adapter_weights(model: Any, lora: Mapping[str, Any] | None) -> int:
    if lora is None:
        return 0
    rank, targets = lora.get("r", 8), lora.get("target_modules", "all-linear")
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


def gib(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"
