"""The loop on rude sentences: an upstream that ends them rudely, corrected live, and rounds that train on the corrections.

Its answers go through `LocalChatModel | AlignerCorrector` into a store, and `bootstrap.rounds` does with that what it does
with any store.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import before_after
import endings
import real
import rude
import speaker
from before_after import Held, Served
from endings import asked, cut
from report import Figures

from aligner_chain import Aligner, Correction, Exchange
from aligner_chain.engines.base import Sampling
from bootstrap.aligner_training import AlignerTrainingSettings
from bootstrap.answering import Answering
from bootstrap.collect import Collector
from bootstrap.evaluation import GatePolicy
from bootstrap.evaluation.policy import HEALTH
from bootstrap.measures import Yardstick
from bootstrap.pairs import Triple
from bootstrap.records import split_of
from bootstrap.registry import Registry
from bootstrap.rounds import Ledger, Round, RoundConfig, Rounds, register_start
from bootstrap.sft import cpu_threads
from bootstrap.store import CorrectionStore
from bootstrap.training import Launcher
from bootstrap.upstream import DPOSettings

ROUNDS = 2
LIVE = 600
"""Beginnings that are answered live before each round."""
TEMPERATURE = 0.7
"""Of live answers, of those that the gates look at, and of the drawn ones that are measured."""
MAX_NEW = 48
"""Most tokens of an ending; nearly all of the training data have fewer."""
GOLD = 2000
"""Rows of the Aligner's own training that each of its retrainings has too."""
ALIGNER = "aligner"
DPO: Mapping[str, Any] = {
    "epochs": 2.0,
    "batch": 16,
    "learning_rate": 3e-4,
    "loss_weights": (0.1, 2.0),
    "collator": "edits",
}
POLICY = GatePolicy(health={name: most for name, most in HEALTH.items() if name != "broken_off"})
"""Of people's own rewrites 14 points more than of the rude sentences end without a mark, and 2 more is the limit."""
RETRAINING: Mapping[str, Any] = {"steps": 60, "batch": 32, "learning_rate": 3e-4}


@dataclass(frozen=True)
class Recipe:
    """The Aligner that is taken, by its name and its folder, and how it is trained on for endings instead of sentences."""

    name: str
    start: Path
    size: real.Size


@dataclass(frozen=True)
class Parts:
    """The training sentences by what is done with them; no beginning of `live` or `gate` is that of one in `upstream`."""

    upstream: Sequence[str]
    live: Sequence[str]
    gate: Mapping[str, str]


def parts(known: rude.Rewrites, lexicon: frozenset[str], seed: int) -> Parts:
    """A beginning is a gate's where the store's own rule says so; of the others some are asked live.

    What the rule puts into the report set is left to the upstream: what is reported is measured on other sentences.
    """
    shuffled = random.Random(seed).sample(sorted(known), len(known))
    found = endings.beginnings(shuffled, lexicon)
    live = [one for one in found if split_of(asked(one)) == "train"][: ROUNDS * LIVE]
    gate = {one: text for one, text in found.items() if split_of(asked(one)) == "gate"}
    apart = {*live, *gate, ""}
    return Parts([text for text in shuffled if cut(text)[1] and cut(text)[0] not in apart], live, gate)


@dataclass(frozen=True)
class Loop:
    """One run in a folder that keeps what was trained; the methods are its acts, in order.

    Args:
        work: the folder; what is in it is not made again.
        known: the training sentences, with which everything is trained and gated.
        lexicon: what the judge calls rude.
        wider: what the verifier does.
        recipe: of the Aligner, which has learned from none but `known` either.
        seed: of everything that is drawn.
    """

    work: Path
    known: rude.Rewrites
    lexicon: frozenset[str]
    wider: frozenset[str]
    recipe: Recipe
    seed: int

    def run(self, measured: rude.Rewrites) -> Figures:
        """Trains, corrects live, runs the rounds, and measures on beginnings that none of it has seen."""
        models = {
            "upstream": speaker.trained(self.work / "upstream", self.parts.upstream, self.seed),
            "aligner": self.train_aligner(),
        }
        gates = self.start()
        for number in range(1, ROUNDS + 1):
            self.round(number)
        counts = {"upstream": len(self.parts.upstream), "live": LIVE, "gate": len(self.parts.gate)}
        return {
            "data": counts | {"lexicon": len(self.lexicon), "wider_lexicon": len(self.wider)},
            "settings": {"temperature": TEMPERATURE, "dpo": DPO, "retraining": RETRAINING, "gold": GOLD},
            **models,
            "start_gates": gates,
            "rounds": [told(one) for one in self.ledger.rounds()],
            **self.measure(measured),
        }

    @cached_property
    def parts(self) -> Parts:
        return parts(self.known, self.lexicon, self.seed)

    @cached_property
    def triples(self) -> list[Triple]:
        """The rows of an Aligner of whole sentences, cut into beginnings and endings."""
        some = random.Random(self.seed).sample(sorted(self.known), len(self.known))
        return endings.ended(rude.triples({text: self.known[text] for text in some}, "", self.seed))

    @property
    def store(self) -> Path:
        return self.work / "corrections.db"

    @property
    def registry(self) -> Registry:
        return Registry(self.work / "home")

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.registry.database)

    def train_aligner(self) -> Figures:
        """Trains the recipe's Aligner on, once, and says what that took."""
        model, took = real.trained(self.work, ALIGNER, self.triples, self.recipe.size, self.seed, self.recipe.start)
        model.close()
        return {"recipe": self.recipe.name, **asdict(self.recipe.size), **took}

    # --- the rounds ------------------------------------------------------------------------------------------------

    @cached_property
    def config(self) -> RoundConfig:
        """What each of the rounds is made of."""
        return RoundConfig(
            store=self.store,
            home=self.work / "home",
            base_upstream=self.work / "upstream",
            base_aligner=self.work / ALIGNER,
            yardstick=Yardstick(judge=endings.judge(self.lexicon, endings.vocabulary(self.known))),
            verifier=endings.Verifier(self.wider),
            gold=tuple(random.Random(self.seed).sample(self.triples, GOLD)),
            known_right=self.right(),
            answering=self.answering(TEMPERATURE),
            dpo=DPOSettings(seed=self.seed, threads=1, lora=None, replay=0.0, extra=speaker.EXTRA, **DPO),
            aligner=AlignerTrainingSettings(
                warm_up=None, correction=speaker.training(self.seed, **RETRAINING), seed=self.seed
            ),
            launcher=Launcher.here(),
            policy=POLICY,
            regenerate=LIVE,
            examples=0,
            seed=self.seed,
        )

    def right(self) -> tuple[Exchange, ...]:
        """The endings that people gave to the gate's sentences, in small letters, as the upstream writes."""
        rewrites = (cut(one.lower()) for text in self.parts.gate.values() for one in self.known[text])
        found = (Exchange(turns=asked(beginning), answer=ending) for beginning, ending in rewrites if ending)
        return tuple(dict.fromkeys(found))

    def answering(self, temperature: float, draw: int = 0) -> Answering:
        return Answering(sampling=Sampling(temperature=temperature, seed=self.seed + draw), max_new=MAX_NEW)

    def start(self) -> list[Figures]:
        """Records the gate's beginnings as live traffic would and serves the start pair, once, through its own gate."""
        stored = self.work / "start.json"
        if not stored.exists():
            self.record()
            gates = [asdict(one) for one in register_start(self.config, say=say)[1]]
            stored.write_text(json.dumps(gates), encoding="utf-8")
        return list(json.loads(stored.read_text(encoding="utf-8")))

    def record(self) -> None:
        prompts = [Exchange(turns=asked(one), answer="") for one in self.parts.gate]
        with contextlib.closing(CorrectionStore(self.store)) as store:
            store.append(Correction(exchange=one, text="", outcome="skipped", reason="held out") for one in prompts)

    def round(self, number: int) -> None:
        """One round on what was collected live before it; goes on with one that was killed, does none twice."""
        rounds, found = Rounds(config=self.config, say=say), self.ledger.rounds()
        with cpu_threads(1):
            if len(found) < number:
                self.live(number)
                rounds.run()
            elif not found[number - 1].finished:
                rounds.resume()

    def live(self, number: int) -> None:
        """Live traffic through the pair that is served, collected as it goes by."""
        from langchain_core.runnables import RunnableConfig

        from aligner_chain.langchain import AlignerCorrector, LocalChatModel

        pair, beginnings = self.served()[-1], self.parts.live[(number - 1) * LIVE : number * LIVE]
        llm = LocalChatModel(
            pair.upstream,
            identity=pair.identity,
            temperature=TEMPERATURE,
            seed=self.seed + number,
            max_new_tokens=MAX_NEW,
        )
        with (
            contextlib.closing(Aligner.from_pretrained(pair.aligner)) as aligner,
            contextlib.closing(CorrectionStore(self.store)) as store,
            contextlib.closing(Collector(store)) as collector,
        ):
            # A correction that comes to no end leaves the answer as it is, as live traffic would have it.
            corrector = AlignerCorrector(aligner=aligner, on_correction=collector.submit, on_error="pass_through")
            chain = llm | corrector
            chain.batch([*beginnings], config=RunnableConfig(max_concurrency=64))
            collector.flush()
            say(f"round {number}: {len(beginnings)} live answers, {collector.counters}")

    # --- before and after ------------------------------------------------------------------------------------------

    def served(self) -> list[Served]:
        """The pairs that were served: at the start, and after each round."""
        pairs = {one.number: one for one in self.registry.pairs()}
        numbers = [min(pairs)]
        for one in self.ledger.rounds():
            numbers.append(one.pair or numbers[-1])
        names = ["start", *(f"round {at}" for at in range(1, len(numbers)))]
        return [Served.of(name, pairs[number]) for name, number in zip(names, numbers, strict=True)]

    def measure(self, measured: rude.Rewrites) -> Figures:
        taught = {cut(text)[0] for text in self.known}
        new = {one: text for one, text in endings.beginnings(measured, self.lexicon).items() if one not in taught}
        held, pairs = Held(new, measured, self.lexicon, endings.vocabulary(self.known)), self.served()
        drawn, again = (self.answering(TEMPERATURE, draw) for draw in (100, 200))
        return {
            "measured": len(new),
            "greedy": before_after.measure(pairs, held, self.answering(0.0)),
            "drawn": before_after.measure(pairs, held, drawn, again),
            "likelihoods": before_after.likelihoods(pairs, held),
        }


def say(line: str) -> None:
    print(line, flush=True)


def told(one: Round) -> Figures:
    """What is stored of a round: how it ended, what it was made of, and what its gates said."""
    data, verified = one.result("freeze"), one.result("verify")
    return {
        "round": one.number,
        "status": one.status,
        "reason": one.reason,
        "pairs": data["pairs"]["rows"],
        "left_out": data["pairs"]["dropped"],
        "confirmed": verified.get("confirmed"),
        "refused": verified.get("refused"),
        "aligner_rows": one.result("train_aligner").get("rows"),
        "gates": list(one.gates),
        "seconds": {stage.stage: round(stage.seconds or 0.0, 1) for stage in one.stages},
    }
