"""The plain way to decode a batch: padded to a rectangle, token by token, for models that `packed` does not fit.

Each row leaves when it is finished. Shapes: B rows still decoding, P columns of prompt (left-padded), V tokens of vocabulary.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from aligner_chain.engines.rows import Row, drawn, largest, wide

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from aligner_chain.engines.base import Generation


_SCORED = 2**28
"""Most logits of one scoring forward: rows x draft tokens x vocabulary."""
_HELD = 4
"""Batches of rows that are held, to choose those of like length from."""


def rows_at_once(rows: Sequence[Row], vocabulary: int) -> int:
    """How many of the rows one batch may hold."""
    longest = max(len(scored(row)) for row in rows)
    return max(1, min(len(rows), _SCORED // ((longest + 1) * vocabulary) if longest else len(rows)))


def scored(row: Row) -> tuple[int, ...]:
    """The draft behind its lead, where its log-probabilities are wanted."""
    request = row.ticket.request
    return (*request.draft.lead, *request.draft.ids) if request.draft is not None and request.score_draft else ()


class PaddedBatch:
    """Rows that are decoded in padded batches, one after the other: `RunningBatch` for models that it does not fit.

    Some more rows than decode together are held, so that those of like length do.
    """

    def __init__(
        self, model: PreTrainedModel, *, eos: frozenset[int], max_rows: int, use: Callable[[str | None], None]
    ) -> None:
        self._model, self._eos, self._use = model, eos, use
        self._vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self.max_rows = self._most = max_rows
        self.rows: list[Row] = []
        self._decoding: list[Row] = []

    def add(self, row: Row) -> None:
        self.rows.append(row)

    @property
    def busy(self) -> bool:
        return bool(self.rows)

    @property
    def places(self) -> int:
        """How many more rows are held."""
        return _HELD * self.max_rows - len(self.rows)

    @property
    def room(self) -> float:
        """Memory is made for each batch anew."""
        return math.inf

    def make_room(self, tokens: int) -> None:
        """There always is room."""

    def uses(self, adapter: str) -> bool:
        return any(row.ticket.request.adapter == adapter for row in self.rows)

    def forget(self) -> bool:
        """Nothing is kept of finished rows."""
        return False

    def close_open(self) -> None:
        """No row is open on this path."""

    def cancel(self) -> None:
        """Sends every row away at the next token."""
        for row in self.rows:
            row.ticket.cancelled = True

    def step(self) -> None:
        """Decodes the oldest row, and those nearest to it in length, to the end."""
        self._drop_interrupted()
        if not self.rows:
            return
        adapter, oldest = self.rows[0].ticket.request.adapter, len(self.rows[0].ticket.request.prompt)
        ordered = sorted(
            (row for row in self.rows if row.ticket.request.adapter == adapter),
            key=lambda row: abs(len(row.ticket.request.prompt) - oldest),
        )
        self._decoding = ordered[: rows_at_once(ordered[: self._most], self._vocabulary)]
        self._use(adapter)
        Decoder(self._model, self._decoding, self._eos).run()
        self._leave()
        self._most = min(2 * self._most, self.max_rows)

    def give_way(self) -> list[Row] | None:
        """Has fewer rows decode together where a step ran out of memory; None: it was a single one."""
        self._leave()
        if len(self._decoding) < 2:
            return None
        self._most = len(self._decoding) // 2
        return []

    def fail(self, error: Exception) -> None:
        """Gives the rows that were decoded the error."""
        for row in self._decoding:
            if not row.ticket.future.done():
                row.ticket.future.set_exception(error)
        self._leave()

    def _drop_interrupted(self) -> None:
        now = time.monotonic()
        for row in self.rows:
            if row.interrupted(now):
                row.resolve(row.broken_off(()))
        self._leave()

    def _leave(self) -> None:
        self.rows = [row for row in self.rows if not row.ticket.future.done()]
        self._decoding = [row for row in self._decoding if not row.ticket.future.done()]


class Decoder:
    """One batch. `run` resolves each row as soon as its generation is there."""

    def __init__(self, model: PreTrainedModel, rows: Sequence[Row], eos: Collection[int]) -> None:
        self._model, self._eos = model, frozenset(eos)
        self._rows: list[Row | None] = list(rows)
        known = inspect.signature(model.forward).parameters
        self._cut_logits, self._positioned = "logits_to_keep" in known, "position_ids" in known
        requests = [row.ticket.request for row in rows]
        self._width = max(len(request.prompt) for request in requests)
        longest = max(request.max_new for request in requests)
        self._cache = _cache(model, self._width + max(longest, *(len(scored(row)) for row in rows)))
        # One row of each tensor per row of the batch; `_keep_only` drops the rows of all of them together.
        self._lengths = self._tensor([[len(request.prompt)] for request in requests])
        self._limits = self._tensor([request.max_new for request in requests])
        self._ends = self._tensor(_rectangle([[*self._eos, *request.stop_ids] for request in requests], fill=-1))
        self._noise = _Noise(rows, longest, model.device)
        self._out = torch.zeros(len(rows), longest, dtype=torch.long, device=model.device)
        self._mask = torch.ones(len(rows), self._width + longest, dtype=torch.long, device=model.device)

    def run(self) -> None:
        logits, step = self._first_forward(rows=[row for row in self._rows if row is not None]), 0
        alive = self._leave(self._limits <= 0, step)
        while alive:
            tokens = self._noise.choose(logits, step)
            self._out[:, step] = tokens
            self._tell(tokens)
            step += 1
            ended = (tokens[:, None] == self._ends).any(1) | (self._limits <= step)
            alive = self._leave(ended, step)
            # Dropping rows copies the cache, about as much work as one step; so not for every single row of many.
            if 0 < len(alive) <= len(self._rows) * 3 // 4:
                self._keep_only(alive)
            if alive:
                logits = self._next_forward(step)

    def _first_forward(self, rows: Sequence[Row]) -> torch.Tensor:
        """Runs prompts, with the drafts to score behind them, and returns the logits [B, V] of the first position."""
        drafts = _rectangle([scored(row) for row in rows], fill=0)
        behind = len(drafts[0])
        prompts = [[0] * (self._width - len(row.ticket.request.prompt)) + [*row.ticket.request.prompt] for row in rows]
        columns = torch.arange(self._width, device=self._mask.device)
        self._mask[:, : self._width] = columns >= self._width - self._lengths
        # What pads a shorter draft stands behind everything that is read, so nothing attends to it.
        ids = torch.cat([self._tensor(prompts), self._tensor(drafts)], dim=1)
        seen = torch.cat([self._mask[:, : self._width], torch.ones_like(ids[:, self._width :])], dim=1)
        if behind:
            self._cache.activate_past_recording()
        logits = self._logits(ids, seen, (seen.cumsum(1) - 1).clamp(min=0), keep=behind + 1)
        if behind:
            self._cache.crop(-behind)
        return self._scored(rows, logits)

    def _next_forward(self, step: int) -> torch.Tensor:
        """Feeds the tokens of the last step and returns the logits [B, V] of the next position."""
        tokens = self._out[:, step - 1 : step]
        return self._logits(tokens, self._mask[:, : self._width + step], self._lengths + step - 1, keep=1)[:, 0]

    def _logits(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, keep: int) -> torch.Tensor:
        options: dict[str, Any] = {"logits_to_keep": keep} if self._cut_logits else {}
        if self._positioned:
            options["position_ids"] = positions
        output = self._model(input_ids=ids, attention_mask=mask, past_key_values=self._cache, use_cache=True, **options)
        logits: torch.Tensor = output.logits[:, -keep:]
        return logits

    def _scored(self, rows: Sequence[Row], logits: torch.Tensor) -> torch.Tensor:
        """Notes the wanted log-probabilities of [B, 1 + draft, V] and returns the biased first position [B, V]."""
        first = wide(logits[:, 0]) if logits.element_size() < 4 else logits[:, 0].clone()
        for index, row in enumerate(rows):
            request, ids = row.ticket.request, scored(row)
            if request.score_draft and request.draft is not None:
                row.draft_logprobs = _gathered(logits[index, : len(ids)], ids)[len(request.draft.lead) :]
                ends = self._tensor([*self._eos, *request.draft.ends])
                row.draft_end_logprob = float(wide(logits[index, len(ids)]).log_softmax(-1)[ends].logsumexp(-1))
            if request.choices:
                chosen = first[index].log_softmax(-1)[self._tensor(request.choices)]
                row.choice_logprobs = dict(zip(request.choices, chosen.tolist(), strict=True))
            for token, nats in request.bias.items():
                first[index, token] += nats
        return first

    def _tell(self, tokens: torch.Tensor) -> None:
        """Hands each row that is watched its token [B], but none that ends the output."""
        watched = [
            (index, row.ticket) for index, row in enumerate(self._rows) if row is not None and row.ticket.request.stream
        ]
        if not watched:  # Reading tokens would wait for the device.
            return
        values, ended = tokens.tolist(), (tokens[:, None] == self._ends).any(1).tolist()
        for index, ticket in watched:
            if not ended[index]:
                ticket.push([values[index]])

    def _leave(self, ended: torch.Tensor, step: int) -> list[int]:
        """Finishes the rows that ended or were interrupted, and returns the indices of the others."""
        flags = ended.tolist()  # the one wait for the device in a step
        for index, row in enumerate(self._rows):
            generation = None if row is None else self._outcome(index, row, step, ended=flags[index])
            if row is not None and generation is not None:
                self._rows[index] = None
                row.resolve(generation)
        return [index for index, row in enumerate(self._rows) if row is not None]

    def _outcome(self, index: int, row: Row, step: int, *, ended: bool) -> Generation | None:
        row.cost.forwards = max(1, step)
        interrupted = row.interrupted(time.monotonic())
        if not (ended or interrupted or row.ticket.request.stop or step == 0):
            return None
        ids = self._out[index, :step].tolist()
        done = (row.approval() if step == 0 else None) or row.ended(ids, self._eos)
        return done or (row.broken_off(ids) if interrupted else None)

    def _keep_only(self, alive: Sequence[int]) -> None:
        self._rows = [self._rows[index] for index in alive]
        indices = self._tensor(alive)
        self._cache.batch_select_indices(indices)
        self._lengths, self._limits, self._ends, self._out, self._mask = (
            tensor[indices] for tensor in (self._lengths, self._limits, self._ends, self._out, self._mask)
        )
        self._noise.keep_only(indices)

    def _tensor(self, values: Sequence[Any]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._model.device)


class _Noise:
    """How each row's tokens are chosen: the best one, or drawn with one uniform per step."""

    def __init__(self, rows: Sequence[Row], steps: int, device: torch.device) -> None:
        wanted = [row.ticket.request.sampling.temperature for row in rows]
        random, places = any(temperature > 0 for temperature in wanted), range(max(1, steps))
        self._temperatures = torch.tensor(wanted, dtype=torch.float64, device=device)[:, None] if random else None
        uniforms = [row.uniforms.at(places) if random else [] for row in rows]
        self._uniforms = torch.tensor(uniforms, dtype=torch.float64, device=device)

    def choose(self, logits: torch.Tensor, step: int) -> torch.Tensor:
        """The tokens [B] of logits [B, V]."""
        best = largest(logits)
        if self._temperatures is None:
            return best
        tokens = drawn(logits, self._temperatures, self._uniforms[:, step : step + 1])
        return torch.where(self._temperatures[:, 0] > 0, tokens, best)

    def keep_only(self, indices: torch.Tensor) -> None:
        if self._temperatures is not None:
            self._temperatures, self._uniforms = self._temperatures[indices], self._uniforms[indices]


class _RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values [B, heads, tokens, dim] in a buffer made once, where `DynamicLayer` copies all at every step."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity, self._used = capacity, 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers = [_buffer(states, self._capacity) for states in (key_states, value_states)]
        end = self._used + key_states.shape[-2]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, self._used : end] = states
        self._show(end)
        return self.keys, self.values

    def crop(self, tokens_to_remove: int) -> None:
        self._show(self._used - abs(tokens_to_remove))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._buffers = [buffer[indices] for buffer in self._buffers]
        self._show(self._used)

    def _show(self, used: int) -> None:
        self._used = used
        self.keys, self.values = (buffer[:, :, :used] for buffer in self._buffers)


def _cache(model: PreTrainedModel, capacity: int) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    # Without layers listed by the config the cache adds plain ones as it goes, and those stay as they are.
    cache.layers = [_RoomyLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _buffer(states: torch.Tensor, capacity: int) -> torch.Tensor:
    batch, heads, _, dim = states.shape
    return states.new_empty(batch, heads, capacity, dim)


def _gathered(logits: torch.Tensor, ids: Sequence[int]) -> tuple[float, ...]:
    """The log-probabilities of `ids` under logits [len(ids), V]."""
    chosen = torch.tensor(ids, dtype=torch.long, device=logits.device)[:, None]
    return tuple(wide(logits).log_softmax(-1).gather(1, chosen)[:, 0].tolist())


def _rectangle(rows: Sequence[Sequence[int]], fill: int) -> list[list[int]]:
    width = max(map(len, rows))
    return [[*row, *[fill] * (width - len(row))] for row in rows]
