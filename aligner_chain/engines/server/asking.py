"""One request at a server: what is asked when, so that its output is what a model in this process would give.

A server cannot be told to bias the first position alone. So the verdict is read from log-probabilities, and where the
biased one is another than the one that was written, the server goes on behind that one.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from aligner_chain.engines.base import Draft, Finish, Generation, Ticket
from aligner_chain.engines.server.completions import Answer, Question
from aligner_chain.engines.server.tokenizing import FastTokenizer
from aligner_chain.errors import EngineError
from aligner_chain.exchange import Usage

_One = TypeVar("_One")
_Other = TypeVar("_Other")

CERTAIN = 1e3
"""Nats of bias behind which a token is written whatever the model thinks."""

Ask = Callable[[Question, Answer, Callable[[list[int]], bool]], Awaitable[Answer]]
"""Has a question answered. The last argument is told the new ids of a stream, and says whether that is enough."""


@dataclass(frozen=True, slots=True)
class _Scores:
    """What the model thinks of the draft: of each token, and of nothing behind it."""

    tokens: tuple[float, ...]
    end: float | None

    def reach(self, least: float) -> bool:
        return self.end is not None and min(*self.tokens, self.end) >= least


class Asking:
    """A ticket on its way. `ask` has a question answered; `ends` are the ids that end an output."""

    def __init__(self, ticket: Ticket, ask: Ask, ends: frozenset[int], tokenizer: FastTokenizer) -> None:
        self._ticket, self._request, self._ask = ticket, ticket.request, ask
        self._ends, self._tokenizer = ends, tokenizer
        self._started = time.monotonic()
        self._accepted = 0
        self._verdicts: dict[int, float] = {}
        self._notes: tuple[str, ...] = ()
        self._scores: _Scores | None = None

    async def generation(self) -> Generation:
        """What comes of it. Raises what the server raises."""
        request = self._request
        if not request.score_draft or request.draft is None:
            return await self._decoded()
        self._scores, first = await self._judged(request.draft)
        if first is not None:
            self._note_verdicts(first)
        if request.approve is not None and self._scores.reach(request.approve):
            return self._made((*request.draft.lead, *request.draft.ids), "eos")
        if not request.max_new:
            return self._made((), "length")
        return await self._decoded() if first is None else await self._behind(self._chosen(first))

    def broken_off(self, finish: Finish) -> Generation:
        """What is known of it where it was cancelled, or its time was over."""
        return self._made(tuple(self._ticket.ids), finish)

    async def _judged(self, draft: Draft) -> tuple[_Scores, Answer | None]:
        """What the model thinks of the draft and, where there are verdicts, of those."""
        if not self._request.choices:
            return await self._scored(draft), None
        verdict = self._answered(self._request.prompt, 1, wanted=self._request.choices)
        return await _both(self._scored(draft), verdict)

    async def _scored(self, draft: Draft) -> _Scores:
        """What the model thinks of the draft, read as a prompt."""
        request = self._request
        prompt = (*request.prompt, *draft.lead, *draft.ids)
        ends = (*sorted(self._ends), *draft.ends)
        answer = await self._answered(prompt, 1, wanted=ends, read=True)
        told = (answer.logprob(token, self._spelled(token)) for token in ends)
        likely = [value for value in told if value is not None and value > -math.inf]
        read = answer.read or []
        if len(read) != len(prompt):
            raise EngineError(
                "The server gave no log-probabilities of the prompt, which it did when it was first asked."
            )
        tokens = tuple(read[len(request.prompt) + len(draft.lead) :])
        return _Scores(tokens, math.log(sum(map(math.exp, likely))) if likely else None)

    async def _decoded(self) -> Generation:
        """The output, asked for at once; and again behind the verdict, where a bias changes it."""
        request, turned = self._request, False

        def heard(ids: list[int]) -> bool:
            nonlocal turned
            if len(answer.ids) == len(ids) and ids and request.bias:
                turned = self._chosen(answer) != answer.ids[0]
            if not turned:
                self._push(ids)
            return turned

        answer = Answer()
        await self._answered(request.prompt, request.max_new, wanted=request.choices, heard=heard, into=answer)
        if request.choices:
            self._note_verdicts(answer)
        chosen = self._chosen(answer)
        if chosen is not None and chosen != answer.ids[0]:
            return await self._behind(chosen)
        return self._ended(answer.ids, answer)

    async def _behind(self, verdict: int | None) -> Generation:
        """The output that begins with a verdict."""
        request = self._request
        if verdict is None or verdict in request.stop_ids or verdict in self._ends:
            return self._made((), "stop" if verdict in request.stop_ids else "eos")
        self._push([verdict])
        if request.max_new == 1:
            return self._made((verdict,), "length")
        answer = await self._answered((*request.prompt, verdict), request.max_new - 1, heard=self._push)
        return self._ended([verdict, *answer.ids], answer)

    async def _answered(
        self,
        prompt: tuple[int, ...],
        max_new: int,
        *,
        wanted: tuple[int, ...] = (),
        read: bool = False,
        heard: Callable[[list[int]], bool] | None = None,
        into: Answer | None = None,
    ) -> Answer:
        request = self._request
        question = Question(
            prompt=prompt,
            max_new=max_new,
            wanted=wanted,
            read=read,
            stop_ids=(*request.stop_ids, *sorted(self._ends)),
            stream=request.stream and heard is not None,
            prediction=request.exchange.answer if request.exchange is not None and max_new > 1 else "",
        )
        answer = await self._ask(question, Answer() if into is None else into, heard or _deaf)
        self._accepted += answer.accepted
        return answer

    def _chosen(self, answer: Answer) -> int | None:
        """The first token under the request's bias. Raises `EngineError` where the server does not tell enough."""
        bias = self._request.bias
        if not answer.ids or not bias:
            return answer.ids[0] if answer.ids else None
        if forced := [token for token, nats in bias.items() if nats >= CERTAIN]:
            return forced[0]
        written, floor = answer.ids[0], min(answer.first.values(), default=0.0)
        value = self._logprob(answer, written)
        if value is None:
            raise self._untold(written)
        best = (value + bias.get(written, 0.0), written)
        for token, nats in bias.items():
            told = self._logprob(answer, token)
            # One that was not told of is no likelier than the least that was; a bias may make up for that, or not.
            if told is None and floor + nats > best[0]:
                raise self._untold(token)
            if told is not None and token != written:
                best = max(best, (told + nats, token))
        return best[1]

    def _logprob(self, answer: Answer, token: int) -> float | None:
        return answer.logprob(token, self._spelled(token))

    def _spelled(self, token: int) -> str | None:
        return str(self._tokenizer.convert_ids_to_tokens([token])[0])

    def _note_verdicts(self, answer: Answer) -> None:
        """Keeps the log-probabilities of the verdicts. One that was not told of is no likelier than the least that was."""
        told = {token: self._logprob(answer, token) for token in self._request.choices}
        known = {token: value for token, value in told.items() if value is not None}
        if not known:
            return
        floor = min(answer.first.values())
        self._verdicts = {token: known.get(token, floor) for token in told}
        self._notes = tuple(
            f"{self._spelled(token)} is not among the {len(answer.first)} likeliest tokens that the server told of, and taken "
            "to be as likely as the last of them"
            for token in told
            if token not in known
        )

    def _untold(self, token: int) -> EngineError:
        return EngineError(
            f"The server does not tell how likely {self._spelled(token)} is, so the verdict at this strength is not known. "
            "Ways out: a server that knows logprob_token_ids (as vLLM does), one that tells of more tokens (vllm serve "
            "--max-logprobs 100), or no strength and no threshold."
        )

    def _push(self, ids: Sequence[int]) -> bool:
        """Tells a stream's reader what is new, without what ended it."""
        if self._request.stream:
            self._ticket.push(
                [token for token in ids if token not in self._ends and token not in self._request.stop_ids]
            )
        return False

    def _ended(self, ids: Sequence[int], answer: Answer) -> Generation:
        """The generation of an output as the server gave it, with or without the token that ended it."""
        stops = self._request.stop_ids
        if answer.finish not in ("stop", "length", "eos", "eos_token"):
            raise EngineError(f"The server ended the output for a reason that is not known: {answer.finish!r}.")
        if ids and ids[-1] in stops:
            return self._made(tuple(ids[:-1]), "stop")
        if ids and ids[-1] in self._ends:
            return self._made(tuple(ids[:-1]), "eos")
        if answer.finish == "length":
            return self._made(tuple(ids), "length")
        return self._made(tuple(ids), "stop" if answer.stop in stops else "eos")

    def _made(self, ids: tuple[int, ...], finish: Finish) -> Generation:
        request = self._request
        whole = () if request.draft is None else (*request.draft.lead, *request.draft.ids)
        made = Generation(
            key=request.key,
            ids=ids,
            finish=finish,
            approved=bool(whole) and finish == "eos" and whole == ids,
            choice_logprobs=self._verdicts,
            notes=self._notes,
            usage=Usage(
                prompt_tokens=len(request.prompt),
                new_tokens=len(ids),
                accepted_draft_tokens=self._accepted,
                latency_s=time.monotonic() - self._started,
            ),
        )
        if self._scores is None:
            return made
        return replace(made, draft_logprobs=self._scores.tokens, draft_end_logprob=self._scores.end)


async def _both(one: Coroutine[Any, Any, _One], other: Coroutine[Any, Any, _Other]) -> tuple[_One, _Other]:
    """What two give that run side by side; where one fails, so does the other."""
    tasks = asyncio.create_task(one), asyncio.create_task(other)
    try:
        return await tasks[0], await tasks[1]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _deaf(ids: list[int]) -> bool:
    return False
