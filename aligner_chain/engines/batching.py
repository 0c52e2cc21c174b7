"""Continuous batching with drafts: rows join while others decode, and each forward takes every row as far as it can.

A row's first forward reads its prompt, answers with the verdict, and may verify the draft at once. A draft is right as far
as the model would have chosen the same tokens, so the text is that of decoding token by token (speculative decoding with
the original as the draft: "aggressive decoding", Sun et al. 2021, arXiv 2106.04970; Ge et al. 2022, arXiv 2205.10350).
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from aligner_chain.engines import onednn
from aligner_chain.engines.drafting import FIRST, CostCurve, Drafter, Habits, first_draft
from aligner_chain.engines.packed import Memory, Segment, forward
from aligner_chain.engines.rows import Row, drawn, largest, wide

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from aligner_chain.engines.base import Generation

TOKENS = 2048
"""Most tokens of one forward; a longer prompt is read in parts, so that the others are not held up."""
LOGITS = 2**26
"""Most logits of one forward, except for a draft that is to be scored as a whole: rows of logits x vocabulary."""
EARLY = 16
"""Most tokens that the first draft of a streamed row adds to its first forward, so that its first text comes early."""
_CACHED = 2**17
"""Logits that a CPU holds near at hand."""
_SHARED = 16
"""Tokens that a prompt must have in common with an earlier one before they are copied instead of read."""
_REMEMBERED = 8
_KEPT, _KEEP_WEIGHT = 0.9, 0.05
"""The share of verdicts to keep that is expected before any is known, and the weight of the newest one in the running share."""
_CURVE_TOKENS = (1, 2, 4, 16, 64)
_CURVE_ROUNDS, _CURVE_S = 6, 1.0


class Running:
    """A row with what the model has read of it: the prompt, the output so far, and the memory of both."""

    __slots__ = ("_drafter", "_seen", "adapter", "failed", "memory", "prompt", "row", "sealed", "tokens", "unscored")

    def __init__(self, row: Row) -> None:
        self.row = row
        self.prompt: tuple[int, ...] = ()
        self.tokens: list[int] = []
        self.memory = Memory(0)
        self.sealed, self.unscored, self.failed = False, True, False
        self.adapter = row.ticket.request.adapter
        self._seen: object = None
        self._drafter: Drafter | None = None

    @property
    def output(self) -> list[int]:
        return self.tokens[len(self.prompt) :]

    @property
    def pending(self) -> list[int]:
        """What the model has not read yet."""
        return self.tokens[self.memory.length :]

    @property
    def waits(self) -> bool:
        """Whether nothing can be done before its ticket changes."""
        ticket = self.row.ticket
        return not (ticket.sealed or ticket.cancelled or ticket.request is not self._seen or self.pending)

    def follow(self) -> None:
        """Takes over the prompt as the ticket now has it; what was read and still holds stays."""
        ticket = self.row.ticket
        sealed, request = ticket.sealed, ticket.request  # in this order: what is sealed does not change any more
        if request is self._seen and sealed == self.sealed:
            return
        self._seen, self.sealed, self.prompt = request, sealed, request.prompt
        common = _common(self.tokens[: self.memory.length], self.prompt) if request.adapter == self.adapter else 0
        self.adapter = request.adapter
        # At least one token is always left to read, since the answer comes from the last one.
        self.memory.length = min(common, len(self.prompt) - 1) if sealed else common
        self.tokens = list(self.prompt)
        if sealed:
            self.memory.reserve(self.row.room)
            self.row.start()

    def drafter(self, curve: CostCurve, eos: int, ends: frozenset[int], habits: Habits) -> Drafter | None:
        """What guesses its output; None without a draft."""
        request = self.row.ticket.request
        if self._drafter is None and request.draft is not None and (request.max_new > 1 or request.score_draft):
            original = (*request.draft.lead, *request.draft.ids, eos)
            first = None if request.score_draft else FIRST
            self._drafter = Drafter(original, context=self.prompt, ends=ends, curve=curve, first=first, habits=habits)
        return self._drafter

    def advance(self, tokens: Sequence[int]) -> None:
        """Adds what the model chose."""
        self.tokens += tokens
        if self._drafter is not None and tokens:
            self._drafter.advance(tokens)

    def forget(self) -> None:
        """Gives its memory back; everything is read again."""
        self.memory = Memory(0)


@dataclass(slots=True)
class Part:
    """A row's part in one forward: its segment, and where its logits begin among all."""

    running: Running
    segment: Segment
    start: int


class RunningBatch:
    """The rows that one model decodes together. `step` runs one forward and resolves the rows that are finished.

    Rows of different adapters take turns within a step: `use` makes the forwards to come those of one adapter.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        eos: frozenset[int],
        ends: frozenset[int],
        max_rows: int,
        max_tokens: int,
        curve: CostCurve | None = None,
        use: Callable[[str | None], None],
    ) -> None:
        self._model, self._eos, self._ends, self._use = model, eos, ends, use
        self.max_rows, self._max_tokens = max_rows, max_tokens
        self._vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self._curve, self._habits = curve, Habits()
        self._kept = _KEPT
        self._size = onednn.sizes(model)
        self._prefixes = _Prefixes()
        self.rows: list[Running] = []

    def add(self, row: Row) -> None:
        """Lets a row join at the next step."""
        self.rows.append(Running(row))

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return any(not running.waits for running in self.rows)

    @property
    def places(self) -> int:
        """How many more rows may decode; those that only read along take no place."""
        return self.max_rows - sum(running.row.ticket.sealed for running in self.rows)

    @property
    def room(self) -> int:
        """How many more tokens there is memory for."""
        return self._max_tokens - sum(running.memory.capacity for running in self.rows)

    def make_room(self, tokens: int) -> None:
        """Takes it from the rows that only read along, if that is enough; they will read again."""
        reading = [running for running in self.rows if not running.row.ticket.sealed]
        if self.room + sum(running.memory.capacity for running in reading) >= tokens:
            for running in reading:
                running.forget()

    def close_open(self) -> None:
        """Sends the rows away that nobody has sealed."""
        for running in self.rows:
            if not running.row.ticket.sealed:
                running.row.ticket.cancelled = True

    def cancel(self) -> None:
        """Sends every row away at the next step."""
        for running in self.rows:
            running.row.ticket.cancelled = True

    def uses(self, adapter: str) -> bool:
        return any(running.row.ticket.request.adapter == adapter for running in self.rows)

    def forget(self) -> bool:
        """Gives back what is kept of finished rows; whether there was anything."""
        return self._prefixes.clear()

    def step(self) -> None:
        """Runs a forward over what every row has to read, one for each adapter."""
        self._drop_interrupted()
        for running in self.rows:
            running.follow()
            if not running.memory.length:
                self._prefixes.share_with(running)
        adapters = dict.fromkeys(running.adapter for running in self.rows)
        fed = sum(self._pass(adapter) for adapter in adapters)
        # Whoever came first this time comes last the next time, where not everybody fits.
        self.rows = self.rows[1:] + self.rows[:1] if len(self.rows) > fed else self.rows

    def give_way(self) -> list[Row] | None:
        """Frees memory where a step ran out of it, and returns the rows to start anew later; None: nothing is left to free."""
        if self.forget():
            return []
        sealed = [running for running in self.rows if running.sealed]
        if len(sealed) < 2:
            return None
        self.max_rows = len(sealed) - len(sealed) // 2
        leaving = sealed[self.max_rows :]
        self.rows = [running for running in self.rows if running not in leaving]
        for running in self.rows:
            running.forget()
        return [running.row for running in leaving]

    def fail(self, error: Exception) -> None:
        """Gives every sealed row the error; the open ones start again, once: one of them may be what fails every time."""
        for running in self.rows:
            if (running.sealed or running.failed) and not running.row.ticket.future.done():
                running.row.ticket.future.set_exception(error)
        self.rows = [running for running in self.rows if not (running.sealed or running.failed)]
        for running in self.rows:
            running.forget()
            running.failed = True

    def _drop_interrupted(self) -> None:
        now = time.monotonic()
        for running in self.rows:
            if running.row.interrupted(now):
                running.row.resolve(running.row.broken_off(running.output if running.sealed else ()))
        self.rows = [running for running in self.rows if not running.row.ticket.future.done()]

    def _pass(self, adapter: str | None) -> int:
        """One forward over the rows of an adapter; returns how many of them took part."""
        parts = self._plan([running for running in self.rows if running.adapter == adapter])
        if parts:
            self._use(adapter)
            logits = forward(self._model, [part.segment for part in parts], self._size)
            chosen = _Chosen(parts, logits, self._eos)
            for part in parts:
                self._advance(part, chosen)
        return len(parts)

    def _plan(self, rows: Sequence[Running]) -> list[Part]:
        parts: list[Part] = []
        tokens, logits = TOKENS, max(1, LOGITS // self._vocabulary)
        start = 0
        for running in rows:
            if running.pending and tokens > 0:
                segment = self._segment(running, tokens, logits, beside=len(rows) - 1)
                parts.append(Part(running, segment, start))
                tokens -= segment.size
                logits -= segment.wanted
                start += segment.wanted
        return parts

    def _segment(self, running: Running, tokens: int, logits: int, beside: int) -> Segment:
        pending = running.pending
        if len(pending) > tokens or not running.sealed:
            return Segment(running.memory, pending[:tokens], answered=False)
        scored = running.row.ticket.request.score_draft and running.unscored
        room = TOKENS if scored else min(tokens - len(pending), logits - 1)
        return Segment(running.memory, pending, self._drafts(running, room, beside))

    def _drafts(self, running: Running, room: int, beside: int) -> Sequence[Sequence[int]]:
        request, output = running.row.ticket.request, running.output
        if request.draft is None or not self._eos:
            return ()
        drafter = running.drafter(self._measured(), min(self._eos), self._ends, self._habits)
        if drafter is None or not (output or request.score_draft or self._at_once(running)):
            return ()
        if not request.score_draft:
            early = EARLY if request.stream and not output else room
            room = min(room, early, request.max_new - len(output) - 1)
        return drafter.propose(room, beside) if room > 0 else ()

    def _at_once(self, running: Running) -> bool:
        """Whether the first forward holds the draft too. It would be for nothing where the verdict is to keep."""
        request = running.row.ticket.request
        if not request.choices or request.draft is None:
            return True
        curve, read = self._measured(), len(running.pending)
        length = min(first_draft(curve), len(request.draft.ids))
        now = curve.cost(read + length) - curve.cost(read)
        later = (1 - self._kept) * curve.cost(1 + length)
        return now < later

    def _measured(self) -> CostCurve:
        if self._curve is None:
            self._curve = measure(self._model, self._size)
        return self._curve

    def _advance(self, part: Part, chosen: _Chosen) -> None:
        running, segment, row = part.running, part.segment, part.running.row
        row.cost.forwards += 1
        segment.memory.length += len(segment.tokens)
        if not segment.answered:
            return
        chosen.note(part)
        if (approval := row.approval()) is not None:
            self._leave(running, approval)
            return
        request, before = row.ticket.request, running.output
        left = request.max_new - len(before)
        tokens, source = _accepted(segment.branches, chosen.tokens(part), {*self._eos, *request.stop_ids}, left)
        accepted = max(0, len(tokens) - 1)
        segment.memory.move(segment.memory.length + source, segment.memory.length, accepted)
        segment.memory.length += accepted
        row.cost.accepted += accepted
        running.advance(tokens)
        if not before and request.choices:
            self._kept += _KEEP_WEIGHT * ((tokens[:1] == list(request.stop_ids[:1])) - self._kept)
        self._finish(running, new=len(tokens))

    def _finish(self, running: Running, new: int) -> None:
        row, output = running.row, running.output
        generation = row.ended(output, self._eos, new)
        if row.ticket.request.stream:
            # A row that had to start again has told its beginning already.
            told = generation.ids if generation is not None else output
            row.ticket.push(told[len(row.ticket.ids) :])
        if generation is not None:
            self._leave(running, generation)

    def _leave(self, running: Running, generation: Generation) -> None:
        self.rows.remove(running)
        self._prefixes.remember(running)
        running.row.resolve(generation)


class _Chosen:
    """The tokens that the model chose behind each wanted place, and what else a forward tells: one wait for the device."""

    def __init__(self, parts: Sequence[Part], logits: torch.Tensor, eos: Iterable[int]) -> None:
        self._facts: list[tuple[Part, str, int]] = []
        self._eos = tuple(eos)
        extra = list(self._measure(parts, logits))
        best = self._choose(parts, logits)
        values = torch.cat([best.double(), *extra]).tolist() if extra else best.tolist()
        self._best = [int(token) for token in values[: len(best)]]
        self._values = values[len(best) :]

    def tokens(self, part: Part) -> list[int]:
        return self._best[part.start : part.start + part.segment.wanted]

    def note(self, part: Part) -> None:
        """Writes the log-probabilities that belong to a part into its row."""
        position, row = 0, part.running.row
        for owner, kind, count in self._facts:
            values = self._values[position : position + count]
            position += count
            if owner is part and kind == "choices":
                row.choice_logprobs = dict(zip(row.ticket.request.choices, values, strict=True))
            elif owner is part:
                row.draft_logprobs, row.draft_end_logprob = _filled(values, row)
                part.running.unscored = False

    def _measure(self, parts: Sequence[Part], logits: torch.Tensor) -> Iterator[torch.Tensor]:
        for part in parts:
            request, start = part.running.row.ticket.request, part.start
            if request.choices and part.segment.answered and not part.running.output:
                self._facts.append((part, "choices", len(request.choices)))
                yield wide(logits[start]).log_softmax(-1)[list(request.choices)].double()
            lead, ids = _draft_ahead(part) if part.running.unscored and part.segment.branches else (0, ())
            if ids and request.draft is not None:
                rows = logits[start + lead : start + lead + len(ids) + 1]
                self._facts.append((part, "draft", len(ids) + 1))
                yield from _logprobs(rows[:-1], torch.tensor(ids, device=logits.device))
                yield wide(rows[-1:]).log_softmax(-1)[:, [*self._eos, *request.draft.ends]].logsumexp(-1).double()

    def _choose(self, parts: Sequence[Part], logits: torch.Tensor) -> torch.Tensor:
        best = largest(logits)
        for part in parts:
            request, wanted = part.running.row.ticket.request, part.segment.wanted
            if not wanted or not (request.bias or request.sampling.temperature > 0):
                continue
            rows = logits[part.start : part.start + wanted]
            if request.bias and not part.running.output:
                rows = rows.double()
                for token, nats in request.bias.items():
                    rows[0, token] += nats
                best[part.start : part.start + wanted] = largest(rows)
            if request.sampling.temperature > 0:
                best[part.start : part.start + wanted] = _drawn(part, rows)
        return best


def _logprobs(rows: torch.Tensor, ids: torch.Tensor) -> Iterator[torch.Tensor]:
    """Log-probability [n] of each id behind its row of logits [n, V], a few rows at a time.

    On a CPU the memory for all of them at once costs more than the numbers in it.
    """
    few = max(1, (_CACHED if rows.device.type == "cpu" else LOGITS) // rows.shape[1])
    for some, wanted in zip(torch.split(rows, few), torch.split(ids, few), strict=True):
        yield wide(some).log_softmax(-1).gather(1, wanted[:, None])[:, 0].double()


def _drawn(part: Part, rows: torch.Tensor) -> torch.Tensor:
    row, done = part.running.row, len(part.running.output)
    places = [done, *(done + 1 + at for branch in part.segment.branches for at in range(len(branch)))]
    uniforms = torch.tensor(row.uniforms.at(places), dtype=torch.float64, device=rows.device)[:, None]
    temperatures = torch.full_like(uniforms, row.ticket.request.sampling.temperature)
    return drawn(rows, temperatures, uniforms)


def _draft_ahead(part: Part) -> tuple[int, Sequence[int]]:
    """Where in the first branch the draft begins, and its ids from there on; none where the branch is another."""
    draft, branch, output = part.running.row.ticket.request.draft, part.segment.branches[0], part.running.output
    if draft is None or tuple(output) != draft.lead[: len(output)]:
        return 0, ()
    lead = draft.lead[len(output) :]
    ids = branch[len(lead) :][: len(draft.ids)]
    same = tuple(branch[: len(lead)]) == lead and tuple(ids) == draft.ids[: len(ids)]
    return len(lead), ids if same else ()


def _filled(values: Sequence[float], row: Row) -> tuple[tuple[float, ...], float | None]:
    """The values of the draft's tokens, NaN for those that were not proposed, and that of its end where it is wanted."""
    *known, end = values
    request = row.ticket.request
    missing = (len(request.draft.ids) if request.draft is not None else 0) - len(known)
    return (*known, *[math.nan] * missing), None if missing or not request.score_draft else end


def _accepted(
    branches: Sequence[Sequence[int]], chosen: Sequence[int], ends: Collection[int], left: int
) -> tuple[list[int], int]:
    """The next tokens of the output, at most `left`, and where among the branch tokens the accepted ones begin.

    `chosen` holds the model's choice behind the last token, then behind every token of every branch.
    """
    tokens, begin = list(chosen[: min(1, left)]), 0
    for branch in branches:
        if tokens and branch[0] == tokens[0]:
            for at, token in enumerate(branch):
                if token != tokens[-1] or token in ends or len(tokens) >= left:
                    break
                tokens.append(chosen[1 + begin + at])
            return tokens, begin
        begin += len(branch)
    return tokens, 0


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens are the same."""
    shorter = min(len(one), len(other))
    if list(one[:shorter]) == list(other[:shorter]):
        return shorter
    return next(at for at in range(shorter) if one[at] != other[at])


class _Prefixes:
    """What was read for the last few rows, for prompts that begin in the same way."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str | None, tuple[int, ...]], Memory] = OrderedDict()

    def remember(self, running: Running) -> None:
        key = running.adapter, tuple(running.tokens[: running.memory.length])
        self._kept[key] = running.memory
        self._kept.move_to_end(key)
        while len(self._kept) > _REMEMBERED:
            self._kept.popitem(last=False)

    def share_with(self, running: Running) -> None:
        most = len(running.tokens) - 1
        own = [key for key in self._kept if key[0] == running.adapter]
        common = {key: min(_common(key[1], running.tokens), most) for key in own}
        best = max(common, key=lambda key: common[key], default=None)
        if best is not None and common[best] >= _SHARED:
            self._kept.move_to_end(best)
            running.memory.begin_with(self._kept[best], common[best])

    def clear(self) -> bool:
        something = bool(self._kept)
        self._kept.clear()
        return something


@torch.inference_mode()
def measure(model: PreTrainedModel, size: Callable[[int], int] = int) -> CostCurve:
    """The seconds of a forward by its tokens, behind 64 others: the best of several rounds, within about a second."""
    memory, points, begun = Memory(256), dict[int, float](), time.monotonic()
    forward(model, [Segment(memory, [0] * 64, answered=False)])
    memory.length = 64
    for tokens in _CURVE_TOKENS * _CURVE_ROUNDS:
        seconds = _timed(model, Segment(memory, [0], [[0] * (tokens - 1)] if tokens > 1 else []), size)
        points[tokens] = min(seconds, points.get(tokens, seconds))
        if time.monotonic() - begun > _CURVE_S:
            break
    return CostCurve.measured(points)


def _timed(model: PreTrainedModel, segment: Segment, size: Callable[[int], int]) -> float:
    begun = time.perf_counter()
    forward(model, [segment], size).argmax(-1).tolist()
    return time.perf_counter() - begun
