"""The support desk's answers: what its upstream said to held-out questions, right and wrong, and damage that is hard to see."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aligner_chain import Aligner, Exchange
from aligner_chain.checkpoint import read_metadata
from aligner_chain.engines.base import Sampling
from aligner_chain.engines.huggingface import HuggingFaceEngine
from aligner_chain.engines.loading import load
from aligner_chain.templates import get_template
from bootstrap.answering import Answering
from bootstrap.demo import world
from bootstrap.demo.start import MAX_NEW
from bootstrap.records import split_of
from bootstrap.registry import Registry

Draw = Callable[[random.Random], world.Ticket]


@dataclass(frozen=True)
class Answers:
    """Answers of one kind of source, those that the policy calls right and those that it calls wrong."""

    right: Sequence[Exchange]
    wrong: Sequence[Exchange]


def is_right(exchange: Exchange, text: str) -> bool:
    """Whether the written policy finds nothing wrong with `text` as the answer."""
    return all(world.judge(world.read_ticket(exchange), text).values())


def held_out(rng: random.Random) -> world.Ticket:
    return world.draw_held_out_ticket(rng)


def training(rng: random.Random) -> world.Ticket:
    return world.draw_training_ticket(rng)


def prompts(rng: random.Random, draw: Draw, split: str) -> Iterator[Exchange]:
    """Questions of one split, none of them twice."""
    seen: set[str] = set()
    while True:
        one = draw(rng).drawn_exchange(rng)
        if split_of(one.turns, one.split_key) == split and one.question not in seen:
            seen.add(one.question)
            yield one


def upstream_answers(demo: Path, asked: Sequence[Exchange], seed: int) -> Answers:
    """What the upstream of the demo's start answers, drawn at temperature 1 as in its live traffic."""
    answering = Answering(sampling=Sampling(temperature=1.0, seed=seed), max_new=MAX_NEW)
    found = answering.answer_from(demo / "start" / "upstream", asked, upstream="start")
    return judged(one for one in found if one.answer.strip())


def generated(asked: Sequence[Exchange], rng: random.Random) -> Answers:
    """Every second question with a right answer of the world's grammar, the others with one that has one thing wrong."""
    makers = (world.right_answer, world.once_damaged_answer)
    drawn = [makers[at % 2](rng, world.read_ticket(one)) for at, one in enumerate(asked)]
    return judged(replace(one, answer=answer) for one, answer in zip(asked, drawn, strict=True))


def judged(answers: Iterator[Exchange]) -> Answers:
    found = [(one, is_right(one, one.answer)) for one in answers]
    return Answers([one for one, fine in found if fine], [one for one, fine in found if not fine])


def served(demo: Path) -> Path:
    """The folder of the Aligner that the demo's home serves."""
    pair = Registry(demo / "home").served()
    if pair is None:
        raise SystemExit(f"{demo} serves nothing. Make it with  aligner-bootstrap demo --seed 10 --out {demo}")
    return pair.aligner.path


def local_aligner(folder: Path, *, packed: bool = True) -> Aligner:
    """The Aligner in a folder, with the fast decoder or token by token."""
    if packed:
        return Aligner.from_pretrained(folder)
    metadata, (model, tokenizer) = read_metadata(folder), load(folder, revision=None, device="auto", dtype="auto")
    engine = HuggingFaceEngine(model, tokenizer, packed=False)
    return Aligner(engine, metadata=metadata, template=get_template(metadata.template), tokenizer=tokenizer)
