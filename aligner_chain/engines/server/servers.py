"""The servers of one model, as the event loop talks to them: what they say and do, and who answers a question."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TypeVar

from aligner_chain.engines.server.completions import Abilities, Answer, Question
from aligner_chain.engines.server.endpoints import Endpoint, Endpoints
from aligner_chain.engines.server.probing import Card, abilities, card, prefix_block
from aligner_chain.engines.server.tokenizing import FastTokenizer, end_ids, longest
from aligner_chain.engines.server.wire import ServerOptions, Wire
from aligner_chain.errors import CapabilityError, EngineError, ServerError, ServerMismatchError
from aligner_chain.templates import CorrectionTemplate, plain_text

_Told = TypeVar("_Told")


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """What is known here of the model that the servers run. `ends` are the ids that end an output."""

    template: CorrectionTemplate
    tokenizer: FastTokenizer
    ends: frozenset[int]
    window: int | None

    @classmethod
    def read(cls, template: CorrectionTemplate, folder: Path) -> Checkpoint:
        """Reads the small files of a folder. Raises `CheckpointError`, and `TemplateError` where the template does not fit."""
        tokenizer = FastTokenizer.from_folder(folder)
        template.check(tokenizer)
        return cls(template=template, tokenizer=tokenizer, ends=end_ids(folder, tokenizer), window=longest(folder))


class Servers:
    """Made in any thread; all else runs in the one event loop. Raises `ConfigurationError` for what is no address."""

    def __init__(self, urls: Sequence[str], model: str, options: ServerOptions) -> None:
        self.model, self.urls = model, tuple(urls)
        self.wire = Wire(options)
        self._endpoints = Endpoints(urls, options, self._check)
        self._checkpoint: Checkpoint | None = None
        self._can: Abilities | None = None
        self.prefix_block = 0
        """Tokens in a block of their prefix caches; 0 until `agree`, and where one has none or does not say."""

    @property
    def checkpoint(self) -> Checkpoint:
        """What they run. Raises `CapabilityError` before `agree`."""
        if self._checkpoint is None:
            raise CapabilityError("It is not known yet which checkpoint the servers run: call agree(...) first.")
        return self._checkpoint

    @property
    def abilities(self) -> Abilities:
        """What all of them do that were looked at. Raises `CapabilityError` before `agree`."""
        if self._can is None:
            raise CapabilityError("It is not known yet what the servers do: call agree(...) first.")
        return self._can

    def take_over(self, other: Servers) -> None:
        """Takes what another one had found out, for a process that was forked from its own."""
        self._checkpoint, self._can, self.prefix_block = other._checkpoint, other._can, other.prefix_block

    async def cards(self) -> list[Card]:
        """What they say of the model. Raises for a model that is not served, and where no server answers."""
        return _some(
            await asyncio.gather(*(card(self.wire, url, self.model) for url in self.urls), return_exceptions=True)
        )

    async def agree(self, checkpoint: Checkpoint) -> None:
        """Has every server show what it does, and that it runs the checkpoint.

        Raises `ServerMismatchError` where one does not, `CapabilityError` where the template needs more than they do, and
        `ServerError` where none answers.
        """
        self._checkpoint = checkpoint
        told = await asyncio.gather(*map(self._look, self.urls), return_exceptions=True)
        can = reduce(Abilities.shared, _some(told))
        if checkpoint.template.verdict and not (can.ids_in and can.ids_out):
            raise _too_little(self.urls, checkpoint.template, can)
        self._can = can
        for endpoint, one in zip(self._endpoints.all, told, strict=True):
            if not isinstance(one, Abilities):
                self._endpoints.leave(endpoint)

    async def find_prefix_block(self) -> None:
        """Has every server say how it keeps beginnings of prompts. It is one number for all, or none."""
        told = await asyncio.gather(*(prefix_block(self.wire, url) for url in self.urls))
        self.prefix_block = max(told) if all(told) else 0

    def freest(self, near: Endpoint | None) -> Endpoint | None:
        """The server with the fewest requests, or `near` if it has not many more; None where all are away."""
        return self._endpoints.freest(near)

    async def warm(self, prompt: tuple[int, ...], endpoint: Endpoint) -> None:
        """Has a server read the beginning of a prompt, once. What it makes of that says nothing of its health.

        Raises `ServerError`.
        """
        body = Question(prompt=prompt, max_new=1).body(self.model, self.abilities)
        endpoint.running += 1
        try:
            await self.wire.post(f"{endpoint.url}/completions", body)
        finally:
            endpoint.running -= 1

    async def answered(
        self,
        question: Question,
        answer: Answer,
        heard: Callable[[list[int]], bool],
        *,
        near: Endpoint | None = None,
    ) -> Answer:
        """Has a question answered by some server, `near` if it can be; where a stream was cut, another attempt goes on."""
        can, tokenizer = self.abilities, self.checkpoint.tokenizer
        text = None if can.ids_in else _as_text(question.prompt, tokenizer)

        async def attempt(endpoint: Endpoint) -> None:
            url = f"{endpoint.url}/completions"
            if answer.ids and (len(answer.ids) >= question.max_new or answer.ids[-1] in question.stop_ids):
                answer.finish = answer.finish or "length"  # All of it had come before the stream was cut.
                return
            body = question.body(self.model, can, answer.ids, text)
            if not question.stream:
                answer.add(await self.wire.post(url, body), can.ids_out, question.prompt)
                return
            async with self.wire.events(url, body) as events:
                async for said in events:
                    if heard(answer.add(said, can.ids_out)):
                        return

        await self._endpoints.ask(attempt, near)
        if not can.ids_out:
            answer.ids = list(plain_text(tokenizer).encode(answer.text))
        return answer

    async def _look(self, url: str) -> Abilities:
        told = await card(self.wire, url, self.model)
        return await abilities(self.wire, url, told, self.checkpoint.template, self.checkpoint.tokenizer)

    async def _check(self, endpoint: Endpoint) -> None:
        """Looks at a server that was away. Raises `ServerMismatchError` for one that does less than the others."""
        found = await self._look(endpoint.url)
        if self.abilities.shared(found) != self.abilities:
            raise ServerMismatchError(
                f"{endpoint.url} does less than the other servers of {self.model}: {found} against {self.abilities}. Run "
                "the same software on all of them."
            )


def _as_text(prompt: tuple[int, ...], tokenizer: FastTokenizer) -> str:
    """The prompt as a text that the server's tokenizer reads as these ids. Raises `EngineError` where there is none."""
    backend, bos = tokenizer.backend_tokenizer, tokenizer.bos_token_id
    bare = prompt[1:] if prompt[:1] == (bos,) else prompt
    text = str(backend.decode(list(bare), skip_special_tokens=False))
    for framed in (True, False):
        if tuple(backend.encode(text, add_special_tokens=framed).ids) == prompt:
            return text
    raise EngineError(
        "The server takes text alone, and there is no text that it would read as this prompt: question or answer spell a "
        "special token, or hold characters that are not in the vocabulary. Way out: a server that takes token ids, as "
        "vLLM does."
    )


def _some(told: Sequence[_Told | BaseException]) -> list[_Told]:
    """What those servers told that could be asked. Raises what must not be, and the error where there is none."""
    for one in told:
        if isinstance(one, BaseException) and not isinstance(one, ServerError):
            raise one
    found = [one for one in told if not isinstance(one, BaseException)]
    if not found:
        raise _nobody([one for one in told if isinstance(one, ServerError)])
    return found


def _too_little(urls: Sequence[str], template: CorrectionTemplate, can: Abilities) -> CapabilityError:
    lacks = "does not tell the token ids of its output" if can.ids_in else "takes text alone, no token ids"
    return CapabilityError(
        f"{', '.join(urls)} {lacks}. The segments of {template.name} are set off by special tokens, which no text may spell, "
        "so ids are needed both ways. Ways out: vLLM, or another server that takes lists of ids and knows return_token_ids; "
        "or an Aligner of a plain-text template."
    )


def _nobody(errors: Sequence[ServerError]) -> ServerError:
    first = errors[0]
    if first.status is not None and first.status < 500:
        return first
    several = " ".join(dict.fromkeys(map(str, errors)))
    error = ServerError(
        f"{several} Ways out: see whether the server runs and has finished loading its model, and whether the address is "
        "right (it usually ends in /v1).",
        status=first.status,
    )
    error.__cause__ = first
    return error
