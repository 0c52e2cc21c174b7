"""What a candidate answers to the whole pool, once, and what the judge and the health measures say of it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path
from statistics import fmean
from typing import Any

import desk
from candidates import Candidate, Shop

from aligner_chain.exchange import Exchange
from aligner_chain.templates import chat_prompt, plain_text
from bootstrap.demo.start import load_model
from bootstrap.evaluation import GatePolicy, GateResult, candidate_gates
from bootstrap.health import AnswerShares, Health, Likelihoods, answer_shares, measure_likelihoods
from bootstrap.rounds.upstream_stages import gated_health, upstream_evidence
from bootstrap.sft import cpu_threads
from bootstrap.upstream.training import load_tokenizer

MAX_NEW = 96
"""Most tokens of an answer: a padded one has more than the 64 that the demo allows."""
BATCH = 512
FLAGS = ("words", "repetition", "broken_off", "refusals", "garbled")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Answers to the pool in its order, with the verdicts, and of each alone what `AnswerShares` counts."""

    texts: Sequence[str]
    verdicts: Sequence[dict[str, bool]]
    alone: Sequence[dict[str, float]]
    seconds: float

    @property
    def right(self) -> list[bool]:
        return [all(one.values()) for one in self.verdicts]

    def shares(self, rows: Sequence[int]) -> AnswerShares:
        """What `answer_shares` finds in these rows; all but `distinct`, which no limit is about, are means."""
        means = {name: fmean(self.alone[row][name] for row in rows) for name in FLAGS}
        return AnswerShares(answers=len(rows), distinct=0.0, **means)


def made(candidate: Candidate, shop: Shop) -> Path:
    """The folder of a candidate's weights, made unless it is there."""
    with cpu_threads(1):
        return desk.once(shop.folder(candidate.name), lambda folder: candidate.make(shop, folder))


def measured(folder: Path, shop: Shop, prompts: int) -> Measured:
    """The answers of the model in `folder`, made and judged unless they are there."""

    def make(part: Path) -> None:
        with cpu_threads(1):
            started = time.monotonic()
            answers = _answers(folder, desk.pool(shop.seed, prompts))
            seconds = time.monotonic() - started
        verdicts, alone = desk.judge(answers), [_alone(one.answer) for one in answers]
        texts = [one.answer for one in answers]
        part.write_text(json.dumps({"texts": texts, "verdicts": verdicts, "alone": alone, "seconds": seconds}))

    path = desk.once(shop.work / "answers" / f"{folder.name}-{prompts}.json", make)
    return Measured(**json.loads(path.read_text()))


def likelihoods(folder: Path, shop: Shop) -> Likelihoods:
    """The likelihoods of the probe's chosen answers against the served upstream's, as a round measures them."""

    def make(part: Path) -> None:
        with cpu_threads(1):
            found = measure_likelihoods(folder, shop.served, desk.probe(shop.work, shop.seed), ())
        part.write_text(json.dumps(asdict(found)))

    return Likelihoods(**json.loads(desk.once(shop.work / "likelihoods" / f"{folder.name}.json", make).read_text()))


def judged(
    before: Measured, after: Measured, changed: Likelihoods, rows: Sequence[int], *, seed: int, policy: GatePolicy
) -> tuple[GateResult, ...]:
    """The gates of a round whose gate prompts are these rows of the pool."""
    health = Health(likelihoods=changed, before=before.shares(rows), after=after.shares(rows))
    evidence = upstream_evidence(
        ([before.verdicts[row] for row in rows], [after.verdicts[row] for row in rows]),
        ([before.texts[row] for row in rows], [after.texts[row] for row in rows]),
        health=gated_health(health, policy),
        seed=seed,
    )
    return candidate_gates(evidence, policy)


def _answers(folder: Path, prompts: Sequence[Exchange]) -> list[Exchange]:
    """Greedy answers, prompts of like length together: the same as the engine's, in a third of its time on a CPU."""
    tokenizer, model = load_tokenizer(folder), load_model(folder).eval()
    asked = [chat_prompt(tokenizer, one.turns) for one in prompts]
    order = sorted(range(len(asked)), key=lambda index: len(asked[index]))
    texts: dict[int, str] = {}
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        texts |= zip(batch, _generated(model, tokenizer, [asked[index] for index in batch]), strict=True)
    return [replace(one, answer=texts[index], upstream=folder.name) for index, one in enumerate(prompts)]


def _generated(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]]) -> list[str]:
    import torch

    width, plain = max(map(len, prompts)), plain_text(tokenizer)
    ids = torch.tensor([[*[tokenizer.pad_token_id] * (width - len(one)), *one] for one in prompts])
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts])
    with torch.inference_mode():
        rows = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=MAX_NEW,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
    answers = (takewhile(tokenizer.eos_token_id.__ne__, row) for row in rows[:, width:].tolist())
    return [plain.decode(tuple(answer)) for answer in answers]


def _alone(text: str) -> dict[str, Any]:
    shares = answer_shares([text], garbled=desk.unpadded_garbled)
    return {name: getattr(shares, name) for name in FLAGS}
