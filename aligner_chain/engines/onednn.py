"""The matrix products of a model on an x86-64 processor, by oneDNN over a copy of the weights in the order it reads best.

torch multiplies float32 by MKL, which leaves AVX-512 unused on processors that are not Intel's and takes for two rows
nearly twice what it takes for one; in bfloat16 torch does use oneDNN, which then puts the weights in order at every
product. Sorted once, a forward of a few tokens costs hardly more than one of a single token, which is what verifying
drafts lives on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BYTES = 2 * 2**30
"""Most bytes of the copy."""
LEAST = 2**17
"""Multiplications below which torch's own product is faster: one of oneDNN takes some ten microseconds before it begins."""

_log = logging.getLogger(__name__)
_EXACT = 16
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""How far a product may be from torch's own, relative to the largest of its values."""


class PackedLinear(torch.nn.Linear):
    """A linear layer that is multiplied by oneDNN in inference mode, as long as its weights are those that were sorted."""

    _sorted: _Sorted | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  (the name that torch gave it)
        ready = self._sorted
        if ready is None or not torch.is_inference_mode_enabled() or input.numel() * self.out_features < LEAST:
            return super().forward(input)
        if ready.of != _state(self.weight) or input.dtype != ready.weight.dtype:  # changed, or under autocast
            return super().forward(input)
        return _product(input, ready.weight, self.bias)


class _Sorted:
    """The weights [out, in] in oneDNN's order, and the state `of` which they are the copy."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.of = _state(weight)
        self._source = weight.detach()  # while it is held, no other tensor comes to lie at its address
        self.weight: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(self._source, None)  # noqa: SLF001

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """A copy of a layer, deep or pickled, has weights of its own and begins without theirs in order."""
        return type(None), ()


def pack(model: PreTrainedModel, most: int = BYTES) -> int:
    """Sorts the weights of linear layers as far as `most` bytes go, in the model's order; returns the bytes taken.

    The layers stay linear layers with the weights they have, for adapters, training and saving. Nothing is done on other
    devices and processors, for other types of numbers, and where a product comes out differently.
    """
    taken = 0
    for layer in model.modules():
        if type(layer) in (torch.nn.Linear, PackedLinear) and multiplies(layer.weight):
            taken += _pack(layer, most - taken)
    return taken


def sizes(model: PreTrainedModel) -> Callable[[int], int]:
    """Of how many rows a forward is best made that has so many."""
    return rounded if any(isinstance(layer, PackedLinear) for layer in model.modules()) else int


def rounded(rows: int) -> int:
    """A few more rows, so that few numbers of them occur: 8 between two powers of 2.

    For each new one oneDNN writes the code anew, which takes a millisecond or two, and keeps it, half a megabyte a layer.
    """
    return rows if rows <= _EXACT else rows + -rows % max(4, 2 ** (rows.bit_length() - 4))


def _pack(layer: Any, most: int) -> int:
    """Returns the bytes taken: 0 where there is no room, or where the layer is better left alone."""
    size, ready = layer.weight.nbytes, getattr(layer, "_sorted", None)
    if size > most:
        return 0
    if ready is not None and ready.of == _state(layer.weight):
        return int(size)
    try:
        ready = _Sorted(layer.weight)
        reason = None if _same(layer, ready) else "its products differ from torch's"
    except Exception as error:  # noqa: BLE001  (these operators are torch's own business, and any layer works without them)
        reason = f"{type(error).__name__}: {error}"
    if reason is not None:
        _log.warning("A linear layer %s is left to torch: %s.", tuple(layer.weight.shape), reason)
        return 0
    layer.__class__ = PackedLinear
    layer._sorted = ready  # noqa: SLF001
    return int(size)


def multiplies(weight: torch.Tensor) -> bool:
    """Whether oneDNN has products for such weights on this processor."""
    mkldnn: Any = torch.backends.mkldnn
    if weight.device.type != "cpu" or weight.is_inference() or not (mkldnn.is_available() and mkldnn.enabled):
        return False
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001
    return weight.dtype == torch.float32


def _same(layer: torch.nn.Linear, ready: _Sorted) -> bool:
    weight = layer.weight.detach()
    rows = torch.linspace(-1, 1, 3 * layer.in_features).view(3, -1).to(weight.dtype)
    expected = torch.nn.functional.linear(rows, weight).float()
    difference = (_product(rows, ready.weight, None).float() - expected).abs().max()
    return bool(difference <= _TOLERANCE[weight.dtype] * expected.abs().max().clamp(min=1e-6))


def _product(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")  # noqa: SLF001
    return product


def _state(weight: torch.Tensor) -> tuple[int, int]:
    """Changes when the numbers do: in place the version counts on, and another tensor lies elsewhere."""
    return weight.data_ptr(), weight._version  # noqa: SLF001  (torch has no public name for it)
