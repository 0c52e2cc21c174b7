"""Asking a local upstream: prompts in, exchanges with its answers out, the same again for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from aligner_chain.engines.base import Sampling
from aligner_chain.exchange import Exchange
from aligner_chain.templates import chat_request, plain_text

if TYPE_CHECKING:
    from aligner_chain.engines.huggingface import HuggingFaceEngine


@dataclass(frozen=True, kw_only=True, slots=True)
class Answering:
    """How an upstream answers: drawn at `temperature` with noise keyed by `seed` and prompt, at most `max_new` tokens."""

    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=1.0))
    max_new: int = 512

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
        generations = [ticket.result() for ticket in engine.submit(requests)]
        plain = plain_text(engine.tokenizer)
        return [
            replace(prompt, answer=plain.decode(generation.ids), upstream=upstream)
            for prompt, generation in zip(prompts, generations, strict=True)
        ]
