"""A request on its way through a decoder in this process, and how its tokens are drawn."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

from aligner_chain.engines.base import Finish, Generation, Ticket
from aligner_chain.exchange import Usage


@dataclass(slots=True)
class Cost:
    """What a row took part in so far."""

    forwards: int = 0
    accepted: int = 0


class Row:
    """A ticket that is being served. `deadline` is a time of `time.monotonic()`; `decode` gives the text of tokens."""

    __slots__ = (
        "_decode",
        "_started",
        "born",
        "choice_logprobs",
        "cost",
        "deadline",
        "draft_end_logprob",
        "draft_logprobs",
        "ticket",
        "uniforms",
    )

    def __init__(self, ticket: Ticket, decode: Callable[[Sequence[int]], str] = str) -> None:
        self.ticket, self._decode = ticket, decode
        self.cost = Cost()
        draft = ticket.request.draft
        self.draft_logprobs: tuple[float, ...] | None = () if draft is not None and not draft.ids else None
        self.draft_end_logprob: float | None = None
        self.choice_logprobs: dict[int, float] = {}
        self._started: object = None
        self.start()

    def start(self) -> None:
        """Starts the clock, and once more where an open ticket was sealed since: its time counts from there."""
        request = self.ticket.request
        if request is self._started:
            return
        self._started = request
        self.born = time.monotonic()
        self.deadline = math.inf if request.deadline_s is None else self.born + request.deadline_s
        self.uniforms = _Uniforms(f"{request.sampling.seed}:{request.key}")

    @property
    def room(self) -> int:
        """Most tokens of prompt and output together."""
        return len(self.ticket.request.prompt) + self.ticket.request.max_new

    def admitted(self) -> bool:
        """Whether it still has to be run, now that there is room for it."""
        running = self.ticket.future.running()
        if not running and (self.ticket.future.done() or not self.ticket.future.set_running_or_notify_cancel()):
            return False
        if self.interrupted(time.monotonic()):
            self.resolve(self.broken_off(()))
        return not self.ticket.future.done()

    def interrupted(self, now: float) -> bool:
        """Whether it has been cancelled or its time is over."""
        return self.ticket.cancelled or self.deadline <= now

    def generation(self, ids: Sequence[int], finish: Finish) -> Generation:
        """What is known of it now, with the output `ids`."""
        request, draft = self.ticket.request, self.ticket.request.draft
        whole = () if draft is None else (*draft.lead, *draft.ids)
        return Generation(
            key=request.key,
            ids=tuple(ids),
            finish=finish,
            approved=draft is not None and finish == "eos" and whole == tuple(ids),
            draft_logprobs=self.draft_logprobs,
            draft_end_logprob=self.draft_end_logprob,
            choice_logprobs=self.choice_logprobs,
            usage=Usage(
                prompt_tokens=len(request.prompt),
                new_tokens=len(ids),
                forwards=self.cost.forwards,
                accepted_draft_tokens=self.cost.accepted,
                latency_s=time.monotonic() - self.born,
            ),
        )

    def approval(self) -> Generation | None:
        """The draft as it is, if each of its tokens, and that nothing follows, turned out likely enough."""
        draft, least = self.ticket.request.draft, self.ticket.request.approve
        scores, end = self.draft_logprobs, self.draft_end_logprob
        if draft is None or least is None or scores is None or end is None:
            return None
        if not all(score >= least for score in (*scores, end)):
            return None
        return self.generation((*draft.lead, *draft.ids), "eos")

    def ended(self, ids: Sequence[int], eos: Collection[int], new: int = 1) -> Generation | None:
        """The generation, if the output has ended within its `new` last tokens: by EOS, a stop, or its limit."""
        request = self.ticket.request
        stopped = self._stopped(ids, new) if request.stop else 0
        if stopped:
            return self.generation(ids[:stopped], "stop")
        if ids and ids[-1] in eos:
            return self.generation(ids[:-1], "eos")
        if ids and ids[-1] in request.stop_ids:
            return self.generation(ids[:-1], "stop")
        return self.generation(ids, "length") if len(ids) >= request.max_new else None

    def _stopped(self, ids: Sequence[int], new: int) -> int:
        """How many of `ids` there are where the first text to stop at is complete; 0: nowhere."""
        wanted = [one for one in self.ticket.request.stop if one]
        # A character is no more than four tokens, in any vocabulary that spells it out in bytes.
        reach = 4 * max(map(len, wanted), default=0)
        ends = range(len(ids) - new + 1, len(ids) + 1) if wanted else ()
        texts = ((end, self._decode(ids[max(0, end - reach) : end])) for end in ends)
        return next((end for end, text in texts if any(one in text for one in wanted)), 0)

    def broken_off(self, ids: Sequence[int]) -> Generation:
        """The generation of a row that was interrupted."""
        return self.generation(ids, "cancelled" if self.ticket.cancelled else "deadline")

    def resolve(self, generation: Generation) -> None:
        """Hands the generation to whoever waits for it, if anyone still does."""
        if not self.ticket.future.done():
            self.ticket.future.set_result(generation)


class _Uniforms:
    """Numbers between 0 and 1 by the place in the output, so that a row's text does not depend on its neighbours."""

    def __init__(self, seed: str) -> None:
        self._source = random.Random(seed)
        self._drawn: list[float] = []

    def at(self, places: Sequence[int]) -> list[float]:
        while len(self._drawn) <= max(places):
            self._drawn.append(self._source.random())
        return [self._drawn[place] for place in places]


def drawn(logits: torch.Tensor, temperatures: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Tokens [n] of logits [n, V], by inverting each distribution at a uniform [n, 1]; temperatures are [n, 1].

    A token at a place of the output depends on nothing but its logits and its uniform. A draft is therefore right
    exactly where it says what would have been drawn without it.
    """
    cumulated = (logits.double() / temperatures.clamp(min=1e-6)).softmax(-1).cumsum(-1)
    # Against the sum as it came out, not against 1, so that rounding never leads behind the last token.
    level = uniforms * cumulated[:, -1:]
    return torch.searchsorted(cumulated, level, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def largest(logits: torch.Tensor) -> torch.Tensor:
    """The token [n] of the largest of the logits [n, V], the first of equal ones.

    On a CPU numpy finds it: torch 2.13 takes eleven times as long there in fp32, and thirty times in bf16.
    """
    if logits.device.type != "cpu":
        return logits.argmax(-1)
    return torch.from_numpy(wide(logits).numpy().argmax(-1))


def wide(logits: torch.Tensor) -> torch.Tensor:
    """Half precision widened to fp32, for sums of exponentials."""
    return logits.float() if logits.element_size() < 4 else logits
