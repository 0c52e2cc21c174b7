"""What all candidates of the bank share: the served upstream, the pairs to train on, the prompts, and the judge."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from aligner_chain.engines.base import Sampling
from aligner_chain.exchange import Exchange
from bootstrap.answering import Answering
from bootstrap.demo import world
from bootstrap.demo.roles import minimal_repairs, policy
from bootstrap.demo.scale import FULL
from bootstrap.demo.start import MAX_NEW, Workshop
from bootstrap.pairs import Pair
from bootstrap.rounds.artifacts import read_exchanges, write_exchanges

SCALE = replace(FULL, base_steps=900, upstream_steps=400, threads=1)
SAMPLED, PROBES = 4000, 200
"""Training prompts that the served upstream answers, and held-out pairs on which likelihoods are looked at."""
PADDING = (
    "Thank you for your message, we are glad to help you with a return.",
    "It is a good question, and we check that for you.",
)
"""What says nothing: the policy does not forbid it, so the judge reads past it, and only the length tells."""


def once(path: Path, make: Callable[[Path], object]) -> Path:
    """The file or folder, made under another name first unless it is there: what a kill leaves half done is made anew."""
    if not path.exists():
        part = path.with_name(f"{path.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        make(part)
        part.rename(path)
    return path


def judge(exchanges: Sequence[Exchange]) -> list[Mapping[str, bool]]:
    """The desk's exact policy, which reads past `PADDING`."""
    return policy([replace(one, answer=_unpadded(one.answer)) for one in exchanges])


def unpadded_garbled(answer: str) -> bool:
    """Whether the world's grammar cannot read the answer, whatever it is padded with."""
    return world.parse(_unpadded(answer)) is None


def served(work: Path, seed: int) -> Path:
    """The upstream that is served: a base model from nothing, trained on the answers of flawed staff."""

    def make(folder: Path) -> None:
        shop = Workshop(folder=folder, seed=seed, scale=SCALE, say=lambda line: print(line, flush=True))
        tokenizer = shop._tokenizer()
        shop._train_upstream(tokenizer, shop._train_base(tokenizer))

    return once(work / "start", make) / "upstream"


def sampled(work: Path, seed: int) -> list[Exchange]:
    """Training prompts with answers drawn from the served upstream."""
    rng = random.Random(f"{seed} sampled")
    prompts = [world.draw_training_ticket(rng).drawn_exchange(rng) for _ in range(SAMPLED)]
    return _answered(work / "sampled.jsonl", prompts, served(work, seed), seed)


def probe(work: Path, seed: int) -> list[Pair]:
    """Held-out pairs, the same for every candidate."""
    rng = random.Random(f"{seed} probe")
    prompts = [world.draw_held_out_ticket(rng).drawn_exchange(rng) for _ in range(2 * PROBES)]
    return pairs(_answered(work / "probe.jsonl", prompts, served(work, seed), seed))[:PROBES]


def pairs(exchanges: Sequence[Exchange]) -> list[Pair]:
    """Answers and their exact repairs, which a person would write, where there is something to repair."""
    repaired = zip(exchanges, minimal_repairs(exchanges), strict=True)
    return [
        Pair(turns=one.turns, chosen=text, rejected=one.answer, correction_id=str(number))
        for number, (one, text) in enumerate(repaired)
        if text != one.answer and one.answer.strip()
    ]


def pool(seed: int, count: int) -> list[Exchange]:
    """Different held-out prompts, drawn as those of a round of the demo are."""
    rng, found = random.Random(f"{seed} pool"), dict[str, Exchange]()
    while len(found) < count:
        prompt = world.draw_held_out_ticket(rng).drawn_exchange(rng)
        found[prompt.question] = prompt
    return list(found.values())


def _answered(path: Path, prompts: Sequence[Exchange], upstream: Path, seed: int) -> list[Exchange]:
    answering = Answering(sampling=Sampling(temperature=1.0, seed=seed), max_new=MAX_NEW)

    def make(part: Path) -> None:
        write_exchanges(part, answering.answer_from(upstream, prompts, upstream="served"))

    return read_exchanges(once(path, make))


def _unpadded(answer: str) -> str:
    for text in PADDING:
        answer = answer.replace(f" {text}", "")
    return answer
