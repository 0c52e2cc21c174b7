"""Random cases for a decoder with drafts, and the slow obvious way to the same text: `generate`, one row at a time."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from aligner_chain.engines.base import Draft, Generation, Request, Ticket
from aligner_chain.engines.huggingface import HuggingFaceEngine

VOCABULARY = 64
"""So few tokens that pairs of them come again and drafts are combs of many branches."""
EOS = 1
_SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": EOS,
    "pad_token_id": 0,
}
_GROUPED = {**_SIZE, "num_key_value_heads": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", _GROUPED),
    "Qwen2": ("Qwen2ForCausalLM", _GROUPED),
    "Qwen3": ("Qwen3ForCausalLM", {**_GROUPED, "head_dim": 8}),
    "Gemma": ("GemmaForCausalLM", {**_GROUPED, "head_dim": 8}),
    "Gemma3, sliding": ("Gemma3ForCausalLM", {**_GROUPED, "head_dim": 8, "sliding_window": 12}),
    "Mistral, sliding": ("MistralForCausalLM", {**_GROUPED, "sliding_window": 12}),
    "Phi": ("PhiForCausalLM", _SIZE),
    "Phi3": ("Phi3ForCausalLM", _GROUPED),
    "GPT2": (
        "GPT2LMHeadModel",
        {
            **{name: _SIZE[name] for name in ("vocab_size", "bos_token_id", "eos_token_id", "initializer_range")},
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 256,
        },
    ),
    "GPTNeoX": ("GPTNeoXForCausalLM", _SIZE),
}


class Vocabulary:
    """As much of a tokenizer as an engine asks for. Every fifth token ends a sentence."""

    eos_token_id = EOS

    def get_vocab(self) -> dict[str, int]:
        return {f"{token}." if token % 5 == 0 else str(token): token for token in range(VOCABULARY)}


def random_model(family: str, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    """A random model whose best token is no near-tie and which now and then ends by itself."""
    name, settings = FAMILIES[family]
    kind = getattr(transformers, name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(kind.config_class(**settings)).eval().to(dtype)


@dataclass(frozen=True)
class Case:
    """A request and the greedy output that it must have, without what ended it."""

    request: Request
    output: tuple[int, ...]


@torch.no_grad()
def greedy(model: Any, prompt: Sequence[int], new: int) -> tuple[int, ...]:
    """The output of `generate`, without EOS."""
    ids = torch.tensor([list(prompt)])
    settings = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0, "eos_token_id": EOS}
    output = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(prompt) :].tolist()
    return tuple(output[:-1] if output[-1:] == [EOS] else output)


def random_cases(model: Any, count: int, source: random.Random) -> list[Case]:
    """Requests of all lengths, some of which begin alike, whose drafts are anything from the very output to another text."""
    made = []
    preamble = _tokens(40, source)
    for number in range(count):
        shared = preamble[: source.choice((0, 0, 0, 15, 16, 40))]
        prompt = shared + _tokens(source.choice((1, 2, 5, 20, 60)), source)
        output = greedy(model, prompt, source.randint(1, 40))
        stops = (source.randrange(2, VOCABULARY),) if source.random() < 0.2 else ()
        request = Request(
            key=str(number),
            prompt=prompt,
            max_new=len(output) + source.choice((0, 0, 1)) or 1,
            draft=_draft(output, source),
            stop_ids=stops,
            choices=(3, 4) if source.random() < 0.3 else (),
            score_draft=source.random() < 0.1,
            stream=source.random() < 0.3,
        )
        made.append(Case(request, _cut(greedy(model, prompt, request.max_new), stops)))
    return made


def _tokens(count: int, source: random.Random) -> tuple[int, ...]:
    return tuple(source.randrange(2, VOCABULARY) for _ in range(count))


def _cut(output: tuple[int, ...], stops: Sequence[int]) -> tuple[int, ...]:
    ends = [at for at, token in enumerate(output) if token in stops]
    return output[: ends[0]] if ends else output


def _draft(output: Sequence[int], source: random.Random) -> Draft | None:
    if source.random() < 0.1:
        return None
    ids = list(output)
    for _ in range(source.choice((0, 0, 1, 2, 5))):
        at, long = source.randint(0, len(ids)), source.randint(0, 4)
        ids[at : at + source.randint(0, 4)] = [source.randrange(2, VOCABULARY) for _ in range(long)]
    if source.random() < 0.1:
        ids = [source.randrange(2, VOCABULARY) for _ in range(source.randint(0, 60))]
    lead = tuple(ids[:1]) if source.random() < 0.3 else ()
    ids = ids[len(lead) :]
    return Draft(ids=tuple(ids), spans=tuple((at, at + 1) for at in range(len(ids))), lead=lead)


def decode(engine: HuggingFaceEngine, cases: Sequence[Case], source: random.Random) -> list[Generation | None]:
    """Decodes the cases as several callers would who come when they like; None for those that were cancelled."""
    seeds = [source.random() for _ in cases]
    with ThreadPoolExecutor(source.choice((1, 4, 32))) as pool:
        return list(pool.map(lambda case, seed: _one(engine, case, random.Random(seed)), cases, seeds))


def _one(engine: HuggingFaceEngine, case: Case, source: random.Random) -> Generation | None:
    ticket = _overlapped(engine, case, source) if source.random() < 0.3 else engine.submit([case.request])[0]
    if source.random() < 0.1:
        time.sleep(source.random() * 0.01)
        ticket.cancel()
    if ticket.future.cancelled():
        return None
    generation = ticket.result(60)
    if case.request.stream and generation.finish != "cancelled":
        assert tuple(ticket.ids) == generation.ids
    return None if generation.finish == "cancelled" else generation


def _overlapped(engine: HuggingFaceEngine, case: Case, source: random.Random) -> Ticket:
    """Feeds the prompt in pieces, sometimes with a wrong end, as an upstream does that still writes."""
    prompt = case.request.prompt
    ticket = engine.open(Request(key=case.request.key))
    for _ in range(source.randint(0, 4)):
        wrong = [source.randrange(2, VOCABULARY) for _ in range(source.randint(0, 3))]
        ticket.feed([*prompt[: source.randint(0, len(prompt))], *wrong])
        if source.random() < 0.5:
            time.sleep(source.random() * 0.005)
    ticket.seal(case.request)
    return ticket


def divergences(
    engine: HuggingFaceEngine, cases: Sequence[Case], source: random.Random
) -> tuple[int, list[tuple[Case, tuple[int, ...]]]]:
    """How many cases came to their end, and those with another output than that of `generate`, with it."""
    generations = decode(engine, cases, source)
    done = [(case, one.ids) for case, one in zip(cases, generations, strict=True) if one is not None]
    return len(done), [(case, ids) for case, ids in done if ids != case.output]
