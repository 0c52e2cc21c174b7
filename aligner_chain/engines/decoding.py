"""Decoding one batch on a Hugging Face causal LM: rows of different lengths, each leaving when it is finished.

Shapes: B rows still decoding, P columns of prompt (left-padded), V tokens of vocabulary.
"""

from __future__ import annotations

import inspect
import random
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from aligner_chain.engines.base import Finish, Generation, Request, Ticket
from aligner_chain.exchange import Usage

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Row:
    """A ticket on its way through the decoder. `deadline` is a time of `time.monotonic()`."""

    __slots__ = ("born", "choice_logprobs", "deadline", "draft_logprobs", "request", "ticket")

    def __init__(self, ticket: Ticket) -> None:
        self.ticket, self.request = ticket, ticket.request
        self.born = time.monotonic()
        seconds = ticket.request.deadline_s
        self.deadline = float("inf") if seconds is None else self.born + seconds
        self.draft_logprobs: tuple[float, ...] | None = None
        self.choice_logprobs: dict[int, float] = {}

    @property
    def scored(self) -> tuple[int, ...]:
        """The draft's ids, where their log-probabilities are wanted."""
        draft = self.request.draft
        return draft.ids if draft is not None and self.request.score_draft else ()

    def interrupted(self, now: float) -> bool:
        return self.ticket.cancelled or self.deadline <= now

    def generation(self, ids: Sequence[int], finish: Finish, forwards: int) -> Generation:
        draft, usage = (
            self.request.draft,
            Usage(
                prompt_tokens=len(self.request.prompt),
                new_tokens=len(ids),
                forwards=forwards,
                latency_s=time.monotonic() - self.born,
            ),
        )
        return Generation(
            key=self.request.key,
            ids=tuple(ids),
            finish=finish,
            approved=draft is not None and finish == "eos" and draft.ids == tuple(ids),
            draft_logprobs=self.draft_logprobs,
            choice_logprobs=self.choice_logprobs,
            usage=usage,
        )


class Decoder:
    """One batch. `run` calls `finish` for each row as soon as its generation is there."""

    def __init__(
        self,
        model: PreTrainedModel,
        rows: Sequence[Row],
        eos: Collection[int],
        finish: Callable[[Row, Generation], None],
    ) -> None:
        self._model, self._eos, self._finish = model, frozenset(eos), finish
        self._rows: list[Row | None] = list(rows)
        known = inspect.signature(model.forward).parameters
        self._cut_logits, self._positioned = "logits_to_keep" in known, "position_ids" in known
        requests = [row.request for row in rows]
        self._width = max(len(request.prompt) for request in requests)
        longest = max(request.max_new for request in requests)
        self._cache = _cache(model, self._width + max(longest, *(len(row.scored) for row in rows)))
        # One row of each tensor per row of the batch; `_keep_only` drops the rows of all of them together.
        self._lengths = self._tensor([[len(request.prompt)] for request in requests])
        self._limits = self._tensor([request.max_new for request in requests])
        self._ends = self._tensor(_rectangle([[*self._eos, *request.stop_ids] for request in requests], fill=-1))
        self._noise = _Noise(requests, longest, model.device)
        self._out = torch.zeros(len(rows), longest, dtype=torch.long, device=model.device)
        self._mask = torch.ones(len(rows), self._width + longest, dtype=torch.long, device=model.device)

    def run(self) -> None:
        logits, step = self._first_forward(rows=[row for row in self._rows if row is not None]), 0
        alive = self._leave(self._limits <= 0, step, forwards=1)
        while alive:
            tokens = self._noise.choose(logits, step)
            self._out[:, step] = tokens
            self._tell(tokens)
            step += 1
            ended = (tokens[:, None] == self._ends).any(1) | (self._limits <= step)
            alive = self._leave(ended, step, forwards=step)
            # Dropping rows copies the cache, about as much work as one step; so not for every single row of many.
            if 0 < len(alive) <= len(self._rows) * 3 // 4:
                self._keep_only(alive)
            if alive:
                logits = self._next_forward(step)

    def _first_forward(self, rows: Sequence[Row]) -> torch.Tensor:
        """Runs prompts, with the drafts to score behind them, and returns the logits [B, V] of the first position."""
        drafts = _rectangle([row.scored for row in rows], fill=0)
        behind = len(drafts[0])
        prompts = [[0] * (self._width - len(row.request.prompt)) + [*row.request.prompt] for row in rows]
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
        first = logits[:, 0].float() if logits.element_size() < 4 else logits[:, 0].clone()
        for index, row in enumerate(rows):
            if row.request.score_draft and row.request.draft is not None:
                row.draft_logprobs = _gathered(logits[index, : len(row.scored)], row.scored)
            if row.request.choices:
                chosen = first[index].log_softmax(-1)[self._tensor(row.request.choices)]
                row.choice_logprobs = dict(zip(row.request.choices, chosen.tolist(), strict=True))
            for token, nats in row.request.bias.items():
                first[index, token] += nats
        return first

    def _tell(self, tokens: torch.Tensor) -> None:
        """Hands each row that is watched its token [B], but none that ends the output."""
        watched = [
            (index, row.ticket) for index, row in enumerate(self._rows) if row is not None and row.request.stream
        ]
        if not watched:  # Reading tokens would wait for the device.
            return
        values, ended = tokens.tolist(), (tokens[:, None] == self._ends).any(1).tolist()
        for index, ticket in watched:
            if not ended[index]:
                ticket.push(values[index])

    def _leave(self, ended: torch.Tensor, step: int, forwards: int) -> list[int]:
        """Finishes the rows that ended or were interrupted, and returns the indices of the others."""
        flags, now = ended.tolist(), time.monotonic()  # the one wait for the device in a step
        for index, row in enumerate(self._rows):
            if row is not None and (flags[index] or row.interrupted(now)):
                self._rows[index] = None
                self._finish(row, self._finished(row, index, step, forwards, complete=flags[index]))
        return [index for index, row in enumerate(self._rows) if row is not None]

    def _finished(self, row: Row, index: int, step: int, forwards: int, *, complete: bool) -> Generation:
        ids = self._out[index, :step].tolist()
        if not complete:
            return row.generation(ids, "cancelled" if row.ticket.cancelled else "deadline", forwards)
        if ids and ids[-1] in self._eos:
            return row.generation(ids[:-1], "eos", forwards)
        if ids and ids[-1] in row.request.stop_ids:
            return row.generation(ids[:-1], "stop", forwards)
        return row.generation(ids, "length", forwards)

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
    """How each row's tokens are drawn: the best one, or by inverting the distribution at one uniform per step.

    A row's uniforms depend on its seed and key alone, so its text does not depend on its neighbours.
    """

    def __init__(self, requests: Sequence[Request], steps: int, device: torch.device) -> None:
        drawn = any(request.sampling.temperature > 0 for request in requests)
        temperatures = [[request.sampling.temperature] for request in requests]
        self._temperatures = torch.tensor(temperatures, dtype=torch.float64, device=device) if drawn else None
        uniforms = [_uniforms(request, steps) if drawn else [] for request in requests]
        self._uniforms = torch.tensor(uniforms, dtype=torch.float64, device=device)

    def choose(self, logits: torch.Tensor, step: int) -> torch.Tensor:
        """The tokens [B] of logits [B, V]."""
        best = logits.argmax(-1)
        if self._temperatures is None:
            return best
        scaled = logits.double() / self._temperatures.clamp(min=1e-6)
        cumulated = scaled.softmax(-1).cumsum(-1)
        # Against the sum as it came out, not against 1, so that rounding never leads behind the last token.
        level = self._uniforms[:, step : step + 1] * cumulated[:, -1:]
        drawn = torch.searchsorted(cumulated, level, right=True)[:, 0]
        return torch.where(self._temperatures[:, 0] > 0, drawn.clamp(max=logits.shape[-1] - 1), best)

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
    wide = logits.float() if logits.element_size() < 4 else logits
    return tuple(wide.log_softmax(-1).gather(1, chosen)[:, 0].tolist())


def _rectangle(rows: Sequence[Sequence[int]], fill: int) -> list[list[int]]:
    width = max(map(len, rows))
    return [[*row, *[fill] * (width - len(row))] for row in rows]


def _uniforms(request: Request, steps: int) -> list[float]:
    source = random.Random(f"{request.sampling.seed}:{request.key}")
    return [source.random() for _ in range(steps)]
