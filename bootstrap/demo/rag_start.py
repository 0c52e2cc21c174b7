"""The start of the demo with passages: a base that can look things up, and the upstream and the Aligner made of it.

The base learns to look windows up, then to answer and to correct by them. The upstream learns to answer as staff that
often contradicts its passages. The Aligner learns from right answers, damaged or not, each under a policy of its own.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aligner_chain.templates import chat_prompt, encode, get_template
from bootstrap.demo import rag_world, world
from bootstrap.demo.models import new_reader, new_tokenizer
from bootstrap.demo.rag_world import Case, Contradictions
from bootstrap.demo.scale import RagScale
from bootstrap.demo.start import Bench, end_of, load_model
from bootstrap.pairs import Triple
from bootstrap.sft import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LOOKUP_RATE = 1e-3
"""At a higher one the first steps, which learn what is frequent, undo what the reader starts out with."""
BASE_RATE = 1.5e-3
UPSTREAM_RATE = 1e-3
ALIGNER_RATE = 1e-3
VERDICTS = 0.25
"""The share of rows of the Aligner that are a verdict alone."""
LOOKUPS = 10
"""How many products one row looks up."""


@dataclass(frozen=True, kw_only=True)
class RagStart:
    """The folders of the pair that the demo starts with."""

    upstream: Path
    aligner: Path


@dataclass(frozen=True, kw_only=True)
class RagWorkshop(Bench):
    """Makes the models of one seed."""

    scale: RagScale

    def make(self) -> RagStart:
        tokenizer = self._tokenizer()
        base = self._train_base(tokenizer)
        upstream = self._train_upstream(tokenizer, base)
        return RagStart(upstream=upstream, aligner=self._train_aligner(tokenizer, base))

    def _tokenizer(self) -> PreTrainedTokenizerFast:
        rng, texts = self._rng("tokenizer"), [*world.CRITERIA] * 300
        for _ in range(3000):
            case = self._case(rng)
            exchange = case.exchange(rng)
            answers = [rag_world.flawed_answer(rng, case, rag_world.UPSTREAM) for _ in range(2)]
            texts += [exchange.question, *exchange.context[:2], *answers]
        return new_tokenizer(texts)

    def _train_base(self, tokenizer: PreTrainedTokenizerFast) -> Path:
        """Plain lookups first: a model that guesses among the passages finds no way out of guessing in longer texts."""
        lookups = [self._lookup(tokenizer, rng) for rng in self._rngs("lookups", self.scale.lookup_steps)]
        self.say(f"training a base model from nothing on {LOOKUPS * len(lookups)} lookups")
        model = new_reader(tokenizer, seed=self.seed)
        settings = self._settings(self.scale.lookup_steps, rate=LOOKUP_RATE)
        model = self._train_rows(model, tokenizer, lookups, "lookup-work", settings)
        rows = [self._base_row(tokenizer, rng) for rng in self._rngs("base", self.scale.base_steps)]
        self.say(f"training it on {len(rows)} answers, corrections and verdicts")
        settings = self._settings(self.scale.base_steps, rate=BASE_RATE, bucketed=True)
        return self._save(self._train_rows(model, tokenizer, rows, "base-work", settings), tokenizer, "base")

    def _train_upstream(self, tokenizer: PreTrainedTokenizerFast, base: Path) -> Path:
        rngs = self._rngs("staff", self.scale.upstream_steps)
        rows = [self._answer(tokenizer, rng, rag_world.UPSTREAM) for rng in rngs]
        self.say(f"training the upstream on {len(rows)} answers of staff that often contradicts its passages")
        settings = self._settings(self.scale.upstream_steps, rate=UPSTREAM_RATE, bucketed=True)
        model = self._train_rows(load_model(base), tokenizer, rows, "upstream-work", settings)
        return self._save(model, tokenizer, "upstream")

    def _train_aligner(self, tokenizer: PreTrainedTokenizerFast, base: Path) -> Path:
        gold = [gold_triple(rng, self._case(rng)) for rng in self._rngs("gold", self.scale.aligner_steps)]
        self.say(f"training the Aligner on {len(gold)} rows of passages, question, answer and correction")
        # Not `train_aligner`, in which a right answer is a verdict alone: so small a model is hardly ever sure of one, and
        # then has to have learned to write a right answer again as it is.
        rng = self._rng("verdicts")
        rows = [(_verdict if rng.random() < VERDICTS else _correction)(tokenizer, one) for one in gold]
        settings = self._settings(self.scale.aligner_steps, rate=ALIGNER_RATE, bucketed=True)
        model = self._train_rows(load_model(base), tokenizer, rows, "aligner-work", settings)
        return self._save_aligner(model, {}, tokenizer, gold, "rag-desk-aligner")

    # --- rows --------------------------------------------------------------------------------------------------

    def _rngs(self, purpose: str, steps: int) -> list[random.Random]:
        """The same generator once for each row of so many steps, so that no row is seen twice."""
        return [self._rng(purpose)] * (steps * self.scale.batch)

    def _case(self, rng: random.Random) -> Case:
        return rag_world.draw_training_case(rng, first=self.scale.first)

    def _lookup(self, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Row:
        """The passages, then the windows of their products again and again in random order."""
        case = self._case(rng)
        asked = rng.choices(tuple(case.policy), k=LOOKUPS)
        facts = [rng.choice(rag_world.FACTS).format(product=one, window=case.policy[one]) for one in asked]
        return _told(tokenizer, rng, case, " ".join(f"{one}." for one in facts))

    def _base_row(self, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Row:
        """All policies with their conclusions, a right answer, a correction, or a verdict alone."""
        kind = rng.choice(("facts", "answer", "correction", "correction", "verdict"))
        if kind == "facts":
            case = self._case(rng)
            told = [
                rag_world.fact(rng, product, window, case.ticket.days <= window)
                for product, window in rng.sample(tuple(case.policy.items()), len(case.policy))
            ]
            return _told(tokenizer, rng, case, " ".join(told))
        if kind == "answer":
            return self._answer(tokenizer, rng, rag_world.NO_CONTRADICTIONS)
        gold = gold_triple(rng, self._case(rng))
        return _correction(tokenizer, gold) if kind == "correction" else _verdict(tokenizer, gold)

    def _answer(self, tokenizer: PreTrainedTokenizerFast, rng: random.Random, rates: Contradictions) -> Row:
        """The app's prompt with the answer of staff that errs at these rates."""
        case = self._case(rng)
        exchange = case.exchange(rng, rag_world.flawed_answer(rng, case, rates))
        prompt = chat_prompt(tokenizer, rag_world.upstream_turns(exchange))
        return Row(prompt=prompt, output=(*encode(tokenizer, exchange.answer), end_of(tokenizer)))


def gold_triple(rng: random.Random, case: Case) -> Triple:
    """An answer under passages, right or not, with its exact repair."""
    exchange = case.exchange(rng, rag_world.flawed_answer(rng, case, rag_world.GOLD))
    return rag_world.annotate(exchange).triple(exchange, "gold")


def _told(tokenizer: PreTrainedTokenizerFast, rng: random.Random, case: Case, text: str) -> Row:
    """Question and passages as the Aligner is shown them, with no answer, and a text to write."""
    prompt = get_template("aligner-chain/1").prompt(case.exchange(rng), tokenizer)
    return Row(prompt=prompt, output=(*encode(tokenizer, text), end_of(tokenizer)))


def _correction(tokenizer: PreTrainedTokenizerFast, triple: Triple) -> Row:
    """The right text, asked for: the verdict is part of the prompt, since also a right answer is copied here."""
    template = get_template("aligner-chain/1")
    prompt = template.prompt(triple.exchange, tokenizer)
    text = triple.answer if triple.correction is None else triple.correction
    fix, *output = template.target(tokenizer, text, triple.criteria)
    return Row(prompt=(*prompt, fix), output=tuple(output))


def _verdict(tokenizer: PreTrainedTokenizerFast, triple: Triple) -> Row:
    template = get_template("aligner-chain/1")
    target = template.target(tokenizer, triple.correction, triple.criteria)
    return Row(prompt=template.prompt(triple.exchange, tokenizer), output=target[:1])
