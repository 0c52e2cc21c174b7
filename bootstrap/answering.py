"""Asking a local upstream: prompts in, exchanges with its answers out, the same again for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from aligner_chain.engines.base import Request, Sampling
from aligner_chain.exchange import Exchange
from aligner_chain.templates import chat_request, plain_text
from bootstrap.fields import AT_LEAST_ONE, NOT_NEGATIVE, require_fields

if TYPE_CHECKING:
    from aligner_chain.engines.huggingface import HuggingFaceEngine


@dataclass(frozen=True, kw_only=True, slots=True)
class Answering:
    """How an upstream answers: drawn at `temperature` with noise keyed by `seed` and prompt, at most `max_new` tokens.

    What its window has no room for is no answer: a prompt that leaves less room than `max_new` gets a shorter one, a prompt
    that leaves none the empty text, which is judged as such. One long prompt must not stop a round.
    """

    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=1.0))
    max_new: int = 512

    def __post_init__(self) -> None:
        require_fields(self.sampling, temperature=NOT_NEGATIVE)
        require_fields(self, max_new=AT_LEAST_ONE)

    def answer_from(self, folder: Path, prompts: Sequence[Exchange], *, upstream: str) -> list[Exchange]:
        """The prompts answered by the model in `folder`, which is loaded for this and let go again."""
        from aligner_chain.engines.huggingface import HuggingFaceEngine

        engine = HuggingFaceEngine.from_pretrained(str(folder), max_batch=128)
        try:
            return self.answer(engine, prompts, upstream=upstream)
        finally:
            engine.close()

    def answer(self, engine: HuggingFaceEngine, prompts: Sequence[Exchange], *, upstream: str) -> list[Exchange]:
        """The prompts with the answers of `engine` in them; passages are for the Aligner and not shown to it."""
        requests = [
            chat_request(engine.tokenizer, prompt.turns, sampling=self.sampling, max_new=self.max_new)
            for prompt in prompts
        ]
        fitting = [_fitting(request, engine.capabilities.window) for request in requests]
        tickets = iter(engine.submit([request for request in fitting if request is not None]))
        generations = [None if request is None else next(tickets).result() for request in fitting]
        plain = plain_text(engine.tokenizer)
        return [
            replace(prompt, answer="" if generation is None else plain.decode(generation.ids), upstream=upstream)
            for prompt, generation in zip(prompts, generations, strict=True)
        ]


def _fitting(request: Request, window: int | None) -> Request | None:
    """The request with as many new tokens as the window has room for; None where it has none."""
    room = request.max_new if window is None else min(request.max_new, window - len(request.prompt))
    return replace(request, max_new=room) if room > 0 else None
