"""The start of the demo: a base model from nothing, and the upstream and the Aligner that are trained from it.

The base learns the desk's trade from right answers, and to copy and to judge; asked alone, it is the null corrector
that sees the question only.
The upstream learns to answer as the flawed staff of the desk did. The Aligner learns from right answers damaged with
known inverses and, for half, from real samples of a population of upstreams (checkpoints, temperatures, one after a
trial DPO), so that it holds when its input changes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner_chain.checkpoint import AlignerMetadata, write_metadata
from aligner_chain.engines.base import Sampling
from aligner_chain.exchange import Exchange
from aligner_chain.templates import chat_prompt, encode, get_template
from bootstrap.aligner_training import AlignerTrainingSettings, train_aligner, warm_up_rows
from bootstrap.answering import Answering
from bootstrap.demo import world
from bootstrap.demo.models import new_model, new_tokenizer
from bootstrap.demo.roles import annotate
from bootstrap.demo.scale import Pace, Scale
from bootstrap.pairs import Pair, Triple, manifest
from bootstrap.sft import Row, TrainingSettings, train_rows
from bootstrap.upstream import DPOSettings, save_model, train_upstream

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

OTHER_STAFF = world.Faults(rude=0.3, window=0.3, conclusion=0.2, leak=0.5, unanswered=0.25, stubborn=None)
"""How answers are damaged for the Aligner: at other rates than the upstream's, and without its stubborn group."""

MAX_NEW = 64
"""Most tokens of an answer; the longest right one takes about 40."""

LEAVE_FROM = 0.9
"""An answer is left from this probability on. A right one below it is written again, so this costs time only."""

RATE = 3e-3
ALIGNER_RATE = 1.5e-3
RETRAIN_RATE = 3e-4
# Tiny models of random weights take, and need, a far higher rate than pretrained ones, and a faster second moment.
EXTRA = {"adam_beta2": 0.95, "weight_decay": 0.01}

Population = Sequence[tuple[Path, float]]
"""Folders of upstreams, each with the temperature at which its answers are drawn."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """The folders of the start pair and what later rounds need of their making."""

    upstream: Path
    aligner: Path
    gold: tuple[Triple, ...]
    question_only: Callable[[Sequence[Exchange]], list[str]]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What it takes to train the models of one seed in one folder."""

    folder: Path
    seed: int
    scale: Pace
    say: Callable[[str], None]
    progress: bool = False

    def _train_rows(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        rows: list[Row],
        work: str,
        settings: TrainingSettings,
    ) -> PreTrainedModel:
        return train_rows(model, tokenizer, rows, self.folder / work, settings, progress=self.progress)

    def _settings(self, steps: int, **changes: Any) -> TrainingSettings:
        return demo_training(self.scale, self.seed, steps=steps, **changes)

    def _save(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str) -> Path:
        folder = self.folder / name
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    def _save_aligner(
        self,
        model: PreTrainedModel,
        dropped: Mapping[str, int],
        tokenizer: PreTrainedTokenizerFast,
        gold: Sequence[Triple],
        name: str,
    ) -> Path:
        folder = self._save(model, tokenizer, "aligner")
        digest = manifest(gold, dropped)["sha256"]
        template = get_template("aligner-chain/1")
        metadata = AlignerMetadata(
            name=name,
            version=digest[:12],
            template=template.name,
            template_text=template.text,
            criteria=world.CRITERIA,
            thresholds={"leave": LEAVE_FROM},
            data_sha256=digest,
            licence="Apache-2.0",
        )
        write_metadata(folder, metadata)
        return folder

    def _rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.seed} {purpose}")


@dataclass(frozen=True, kw_only=True)
class Workshop(Bench):
    """Makes the start models of one seed."""

    scale: Scale

    def make(self) -> Start:
        tokenizer = self._tokenizer()
        base = self._train_base(tokenizer)
        upstream = self._train_upstream(tokenizer, base)
        gold = self._gold(upstream)
        aligner = self._train_aligner(tokenizer, base, gold)
        return Start(upstream=upstream, aligner=aligner, gold=gold, question_only=_answering_anew(base))

    def _tokenizer(self) -> PreTrainedTokenizerFast:
        rng = self._rng("tokenizer")
        texts: list[str] = [*world.CRITERIA] * 300
        for _ in range(3000):
            ticket = world.draw_training_ticket(rng, self.scale.desk)
            exchange = replace(ticket, passage=True).drawn_exchange(rng)
            answers = [world.flawed_answer(rng, ticket, world.Faults()) for _ in range(2)]
            texts += [exchange.question, *exchange.context, *answers]
        return new_tokenizer(texts)

    def _train_base(self, tokenizer: PreTrainedTokenizerFast) -> Path:
        """A model that answers rightly, copies and judges: without the latter two, what comes of it answers anew."""
        many, judged = self.scale.rows, self.scale.rows * 3 // 4
        self.say(f"training a base model from nothing on {many} right answers, {judged} copies and {judged} verdicts")
        rows = self._answered(tokenizer, "right answers", world.right_answer)
        rng, model = self._rng("copies"), new_model(tokenizer, seed=self.seed)
        damaged = [_damaged(rng, self.scale.desk) for _ in range(judged)]
        template = get_template("aligner-chain/1")
        copies, _ = warm_up_rows(template, tokenizer, damaged, model.config.max_position_embeddings)
        settings = self._settings(self.scale.base_steps, bucketed=True)
        return self._save(self._train_rows(model, tokenizer, rows + copies, "base-work", settings), tokenizer, "base")

    def _train_upstream(self, tokenizer: PreTrainedTokenizerFast, base: Path) -> Path:
        self.say(f"training the upstream on {self.scale.rows} answers of flawed staff")
        faults = world.Faults()
        rows = self._answered(tokenizer, "staff", lambda rng, ticket: world.flawed_answer(rng, ticket, faults))
        settings = self._settings(self.scale.upstream_steps, save_every=self._on_the_way)
        model = self._train_rows(load_model(base), tokenizer, rows, "upstream-work", settings)
        return self._save(model, tokenizer, "upstream")

    @property
    def _on_the_way(self) -> int:
        """The step at which the upstream of the population was that is not trained to the end."""
        return int(0.6 * self.scale.upstream_steps)

    def _answered(
        self, tokenizer: PreTrainedTokenizerFast, purpose: str, answer: Callable[[random.Random, world.Ticket], str]
    ) -> list[Row]:
        rng, rows = self._rng(purpose), []
        for _ in range(self.scale.rows):
            ticket = world.draw_training_ticket(rng, self.scale.desk)
            prompt = chat_prompt(tokenizer, ticket.drawn_exchange(rng).turns)
            rows.append(Row(prompt=prompt, output=(*encode(tokenizer, answer(rng, ticket)), end_of(tokenizer))))
        return rows

    def _gold(self, upstream: Path) -> tuple[Triple, ...]:
        """Answers with their exact repairs: half damaged right ones, half samples of the population."""
        self.say("sampling a population of upstreams for the Aligner's data")
        return (*self._answers_of(self._population(upstream)), *self._damage())

    def _population(self, upstream: Path) -> Population:
        checkpoint = self.folder / "upstream-work" / f"checkpoint-{self._on_the_way}"
        return [(checkpoint, 1.0), (upstream, 1.0), (upstream, 1.3), (self._trial_dpo(upstream), 1.0)]

    def _answers_of(self, population: Population) -> list[Triple]:
        return [
            triple
            for number, (folder, temperature) in enumerate(population)
            for triple in self._sampled(folder, temperature, f"population {number}", self.scale.population)
        ]

    def _damage(self) -> list[Triple]:
        rng = self._rng("damage")
        return [_damaged(rng, self.scale.desk) for _ in range(self.scale.damaged)]

    def _trial_dpo(self, upstream: Path) -> Path:
        """A throw-away DPO on exact repairs: the Aligner shall have seen what preference training does to answers."""
        pairs = [
            Pair(turns=one.turns, chosen=one.correction, rejected=one.answer, correction_id="trial")
            for one in self._sampled(upstream, 1.0, "trial", self.scale.trial_pairs)
            if one.correction is not None
        ]
        settings = demo_dpo(self.scale, self.seed, steps=self.scale.trial_steps)
        model = train_upstream(upstream, pairs, self.folder / "trial-work", settings, progress=self.progress)
        folder = self.folder / "trial"
        save_model(model, upstream, folder)
        return folder

    def _sampled(self, folder: Path, temperature: float, purpose: str, count: int) -> list[Triple]:
        rng = self._rng(purpose)
        prompts = [world.draw_training_ticket(rng, self.scale.desk).drawn_exchange(rng) for _ in range(count)]
        answering = Answering(sampling=Sampling(temperature=temperature, seed=self.seed), max_new=MAX_NEW)
        answers = [one for one in answering.answer_from(folder, prompts, upstream=purpose) if one.answer.strip()]
        return _triples(answers)

    def _train_aligner(self, tokenizer: PreTrainedTokenizerFast, base: Path, gold: Sequence[Triple]) -> Path:
        self.say(f"training the Aligner on {len(gold)} question-answer-correction rows")
        work, settings = self.folder / "aligner-work", self._aligner_settings()
        trained = train_aligner(load_model(base), tokenizer, gold, work, settings, progress=self.progress)
        return self._save_aligner(trained.model, trained.dropped, tokenizer, gold, "support-desk-aligner")

    def _aligner_settings(self) -> AlignerTrainingSettings:
        return AlignerTrainingSettings(
            # At the base's own rate its Aligner forgets what the base knows, and calls right conclusions wrong.
            warm_up=self._settings(self.scale.warm_up_steps, rate=ALIGNER_RATE, bucketed=True),
            correction=self._settings(self.scale.aligner_steps, rate=ALIGNER_RATE, bucketed=True),
            seed=self.seed,
        )


def demo_training(scale: Pace, seed: int, *, steps: int, rate: float = RATE, **changes: Any) -> TrainingSettings:
    """Settings for the demo's models of random weights."""
    settings = {"steps": steps, "batch": scale.batch, "learning_rate": rate, "seed": seed, "threads": scale.threads}
    return TrainingSettings(**{**settings, "extra": EXTRA, **changes})


def demo_dpo(scale: Scale, seed: int, *, steps: int = -1, chosen_only: bool = False) -> DPOSettings:
    """Full weights: adapters are for models that know much already, and this one is half a million weights."""
    return DPOSettings(
        epochs=scale.dpo_epochs,
        steps=steps,
        batch=16,
        learning_rate=7e-4,
        loss_weights=(0.2, 5.0),
        lora=None,
        seed=seed,
        threads=scale.threads,
        extra=EXTRA,
        chosen_only=chosen_only,
        collator="whole",  # with a likelihood that weighs 25 times as much, edits alone would hardly be seen
        replay=0.0,
    )


def _answering_anew(base: Path) -> Callable[[Sequence[Exchange]], list[str]]:
    """The null corrector to beat: a model of the Aligner's size that answers anew, without seeing the answer."""
    greedy = Answering(sampling=Sampling(), max_new=MAX_NEW)
    return lambda exchanges: [one.answer for one in greedy.answer_from(base, list(exchanges), upstream="base")]


def load_model(folder: Path) -> PreTrainedModel:
    """The model in a folder, to train on."""
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder)
    return model


def end_of(tokenizer: PreTrainedTokenizerFast) -> int:
    """The token that ends an answer."""
    return int(tokenizer.eos_token_id)


def _damaged(rng: random.Random, desk: world.Desk) -> Triple:
    """A right answer, damaged or (in half of the cases) not, with its exact repair; one in four under a passage."""
    ticket = world.draw_training_ticket(rng, desk)
    if rng.random() < 0.25:
        ticket = world.with_passage(rng, ticket)
    # Of a product that it does not know an upstream speaks as of one that it knows.
    meant = replace(ticket, product=rng.choice(desk.products)) if ticket.passage and rng.random() < 0.4 else ticket
    kind = rng.random()
    if kind < 0.55:
        answer = world.right_answer(rng, ticket)
    elif kind < 0.83:
        answer = world.once_damaged_answer(rng, meant)
    elif kind < 0.9:
        answer = world.slipped_answer(rng, ticket)
    else:
        answer = world.flawed_answer(rng, meant, OTHER_STAFF)
    return _triples([ticket.drawn_exchange(rng, answer)])[0]


def _triples(answers: Sequence[Exchange]) -> list[Triple]:
    return [repaired.triple(one, "gold") for one, repaired in zip(answers, annotate(answers), strict=True)]
