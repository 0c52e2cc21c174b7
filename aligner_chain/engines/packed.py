"""One forward of a Hugging Face causal LM over rows of any lengths, laid end to end without padding.

Each row has a `Memory` of its keys and values with one write cursor. A forward takes a `Segment` of each row: tokens that
the row has not read yet, and behind them any number of branches, which are guesses at what it will write. Attention runs
row by row over the row's own memory, through the attention interface of transformers, so that models stay as they are.
What turns out wrong lies above the cursor and is written over: nothing is cropped, aligned or padded.

Ragged batches for speculative decoding: BASS (arXiv 2404.15778) and EqSpec (arXiv 2510.22876), which pad or realign.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "aligner_chain_packed"
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}
_GROWTH = 64
"""Tokens of room beyond what is needed when a memory has to grow."""


class Memory:
    """Keys and values of one row, [kv heads, capacity, dim] per layer; those of the first `length` tokens count."""

    __slots__ = ("_layers", "capacity", "length")

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def reserve(self, capacity: int) -> None:
        """Makes room for so many tokens."""
        if capacity <= self.capacity:
            return
        self.capacity = capacity + _GROWTH
        for index, kept in self._layers.items():
            keys, values = (self._grown(states[:, : self.length]) for states in kept)
            self._layers[index] = keys, values

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Puts [kv heads, n, dim] behind the cursor, which stays, and returns views [kv heads, length + n, dim]."""
        if layer not in self._layers:
            self._layers[layer] = self._empty(keys), self._empty(values)
        end, kept = self.length + keys.shape[1], self._layers[layer]
        kept[0][:, self.length : end] = keys
        kept[1][:, self.length : end] = values
        return kept[0][:, :end], kept[1][:, :end]

    def move(self, source: int, target: int, count: int) -> None:
        """Copies the states of `count` tokens from one place to another."""
        if source != target:
            for states in (one for kept in self._layers.values() for one in kept):
                states[:, target : target + count] = states[:, source : source + count].clone()

    def begin_with(self, other: Memory, length: int) -> None:
        """Takes over the first `length` tokens of another row."""
        self._layers, self.length = {}, 0
        self.reserve(length)
        self.length = length
        for index, kept in other._layers.items():
            keys, values = (self._grown(states[:, :length]) for states in kept)
            self._layers[index] = keys, values

    def _grown(self, states: torch.Tensor) -> torch.Tensor:
        grown = self._empty(states)
        grown[:, : states.shape[1]] = states
        return grown

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        return like.new_empty(like.shape[0], self.capacity, like.shape[2])


@dataclass(slots=True)
class Segment:
    """What one row adds to a forward: `tokens` behind its memory, then `branches`, each of which continues `tokens`.

    With `answered`, logits are wanted of the last of the `tokens` and of every token of every branch.
    """

    memory: Memory
    tokens: Sequence[int]
    branches: Sequence[Sequence[int]] = ()
    answered: bool = True
    _masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    @property
    def ids(self) -> list[int]:
        return [*self.tokens, *(token for branch in self.branches for token in branch)]

    @property
    def positions(self) -> list[int]:
        start, end = self.memory.length, self.memory.length + len(self.tokens)
        return [*range(start, end), *(end + at for branch in self.branches for at in range(len(branch)))]

    @property
    def size(self) -> int:
        """How many tokens it adds."""
        return len(self.tokens) + sum(map(len, self.branches))

    @property
    def wanted(self) -> int:
        """How many rows of logits it gets."""
        return 1 + self.size - len(self.tokens) if self.answered else 0

    def attend(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, **options: Any) -> torch.Tensor:
        """[heads, n, dim] attending to [kv heads, length + n, dim], by a mask only where one is needed."""
        window = options.pop("window")
        tokens, seen = query.shape[1], keys.shape[1]
        beyond = window is not None and seen > window
        causal = tokens == seen and len(self.branches) < 2 and not beyond
        mask = None if causal or (tokens == 1 and not beyond) else self._mask(window if beyond else None, query.device)
        attended: torch.Tensor = scaled_dot_product_attention(
            query[None],
            keys[None],
            values[None],
            attn_mask=mask,
            is_causal=causal and tokens > 1,
            enable_gqa=query.shape[0] != keys.shape[0],
            **options,
        )
        return attended[0]

    def _mask(self, window: int | None, device: torch.device) -> torch.Tensor:
        """[n, length + n]: what each new token may see. Made once for all layers."""
        if window not in self._masks:
            self._masks[window] = self._visible(window).to(device)
        return self._masks[window]

    def _visible(self, window: int | None) -> torch.Tensor:
        length, own = self.memory.length, len(self.tokens)
        positions = torch.tensor(self.positions)
        seen = torch.cat([torch.arange(length), positions])
        visible = seen[None] <= positions[:, None]
        if window is not None:
            visible &= seen[None] > positions[:, None] - window
        if len(self.branches) > 1:
            of = torch.tensor([0] * own + [at + 1 for at, branch in enumerate(self.branches) for _ in branch])
            visible[:, length:] &= (of[None] == 0) | (of[None] == of[:, None])
        return visible


class _Active(threading.local):
    """The segments of the forward that runs in this thread."""

    segments: Sequence[Segment] | None = None


_active = _Active()


def forward(model: PreTrainedModel, segments: Sequence[Segment], size: Callable[[int], int] = int) -> torch.Tensor:
    """Runs all segments at once; returns the wanted logits [sum of `wanted`, vocabulary], in order.

    `size` says of how many tokens a forward is made that needs so many; what it has too many stands behind the others and
    is seen by none. No cursor moves: the caller knows how much of a segment turned out right.
    """
    ids: list[int] = []
    positions: list[int] = []
    kept: list[int] = []
    for segment in segments:
        segment.memory.reserve(segment.memory.length + segment.size)
        ids += segment.ids
        positions += segment.positions
        kept += range(len(ids) - segment.wanted, len(ids))
    wanted, device = len(kept), model.device
    read = torch.tensor([_filled(ids, size), _filled(positions, size)], device=device)
    places = torch.tensor(_filled(kept, size), dtype=torch.long, device=device)
    _active.segments = segments
    try:
        return _run(model, read[:1], read[1:], places)[:wanted]
    finally:
        _active.segments = None


def _filled(values: list[int], size: Callable[[int], int]) -> list[int]:
    return values + values[-1:] * (size(len(values)) - len(values))


def _run(model: PreTrainedModel, ids: torch.Tensor, positions: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    # A mask with four dimensions is taken to be made already, and `_attention` needs none: models make theirs from the
    # positions otherwise, at every forward.
    mask = ids.new_zeros(1, 1, 1, 1)
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        use_cache=False,
        logits_to_keep=kept,
    )
    logits: torch.Tensor = output.logits[0]
    return logits


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """[1, heads, N, dim] to [1, N, heads, dim], each segment over the memory of its row."""
    if _active.segments is None:  # Somebody else runs the model, in training or with `generate`.
        attended: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return attended
    layer: Any = module.layer_idx
    start, tokens = 0, query.shape[2]
    if len(_active.segments) == 1 and _active.segments[0].size == tokens:
        rows = _attended(_active.segments[0], layer, query[0], key[0], value[0], scaling, sliding_window)
        return rows.transpose(0, 1)[None], None
    output = query.new_empty(1, tokens, query.shape[1], value.shape[3])
    for segment in _active.segments:
        end = start + segment.size
        queries, keys, values = (states[0, :, start:end] for states in (query, key, value))
        rows = _attended(segment, layer, queries, keys, values, scaling, sliding_window)
        output[0, start:end] = rows.transpose(0, 1)
        start = end
    output[0, start:] = 0
    return output, None


def _attended(
    segment: Segment,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """[heads, n, dim] of one segment, whose keys and values are written into its memory."""
    keys, values = segment.memory.write(layer, key, value)
    return segment.attend(query, keys, values, scale=scaling, window=window)


def _mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    return sdpa_mask(*args, **kwargs) if _active.segments is None else None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)


def prepare(model: PreTrainedModel) -> str | None:
    """Makes a model ready for `forward`, or says why it cannot be; others may go on using it as before."""
    reason = _unfit(model)
    if reason is not None:
        return reason
    before = model.config._attn_implementation  # noqa: SLF001  (transformers has no public name for it)
    try:
        expected = _plain_logits(model)
        model.set_attn_implementation(NAME)
        reason = _difference(expected, _packed_logits(model), _TOLERANCE[model.dtype.itemsize])
    except Exception as error:  # noqa: BLE001  (any model of the hub can fail in its own way, and has another path)
        reason = f"it failed on packed rows ({type(error).__name__}: {error})"
    if reason is not None:
        model.set_attn_implementation(before)
    return reason


def _unfit(model: PreTrainedModel) -> str | None:
    config = model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    if config.is_encoder_decoder:
        return "it is an encoder and a decoder"
    replaceable = model._supports_sdpa and model._can_set_attn_implementation()  # noqa: SLF001  (no public names)
    if not replaceable:
        return "its attention cannot be replaced through transformers"
    if layers - _KNOWN_LAYERS:
        return f"it has layers of the kind {', '.join(sorted(layers - _KNOWN_LAYERS))}"
    if getattr(config, "attn_logit_softcapping", None):
        return "it caps the logits of its attention"
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return "it computes the logits of every position"
    return None


_TOLERANCE = {2: 5e-2, 4: 1e-3, 8: 1e-6}
"""By the bytes of a weight: how far packed logits may be from the model's own, relative to the largest."""
_PROBE = ((1, 3, 2, 5, 4), (2, 2, 3, 1))


@torch.no_grad()
def _plain_logits(model: PreTrainedModel) -> torch.Tensor:
    """What the model itself says to the two rows of the probe: one behind each of their last two tokens."""
    rows = [torch.tensor([row], device=model.device) for row in _PROBE]
    return torch.cat([model(input_ids=row, use_cache=False).logits[0, -2:] for row in rows]).float()


@torch.no_grad()
def _packed_logits(model: PreTrainedModel) -> torch.Tensor:
    """The same from two packed forwards, with a wrong branch before the right one."""
    memories = [Memory(16) for _ in _PROBE]
    forward(model, [Segment(memory, row[:2], answered=False) for memory, row in zip(memories, _PROBE, strict=True)])
    for memory in memories:
        memory.length = 2
    segments = [
        Segment(memory, row[2:-1], [(row[0], row[0]), row[-1:]]) for memory, row in zip(memories, _PROBE, strict=True)
    ]
    return forward(model, segments)[[0, 3, 4, 7]].float()


def _difference(expected: torch.Tensor, packed: torch.Tensor, tolerance: float) -> str | None:
    difference, scale = (packed - expected).abs().max().item(), expected.abs().max().item()
    within = difference <= tolerance * max(scale, 1.0)
    return None if within else f"its packed logits differ by {difference:.2g} from its own"
