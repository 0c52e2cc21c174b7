"""The demo from end to end: train the start pair, correct live, run rounds, measure what came of it, show it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aligner_chain.aligner import Aligner
from aligner_chain.engines.base import Sampling
from aligner_chain.exchange import Correction, Exchange
from bootstrap.aligner_training import AlignerTrainingSettings
from bootstrap.answering import Answering
from bootstrap.collect import Collector
from bootstrap.demo import world
from bootstrap.demo.roles import YARDSTICK, FlawedVerifier, annotate
from bootstrap.demo.scale import FULL, QUICK, Scale
from bootstrap.demo.start import MAX_NEW, RETRAIN_RATE, Start, Workshop, demo_dpo, demo_training
from bootstrap.evaluation import GatePolicy
from bootstrap.measures import Measured, criteria_changes, share, share_figures
from bootstrap.pairs import collect_pairs
from bootstrap.records import split_of
from bootstrap.registry import Registry, Version
from bootstrap.report import write_report
from bootstrap.rounds import NULLS, RoundConfig, RoundResult, register_start, run_round
from bootstrap.sft import cpu_threads, merged
from bootstrap.store import CorrectionStore
from bootstrap.training import Launcher
from bootstrap.upstream import train_upstream

LIBRARIES = ("torch", "transformers", "trl", "peft", "langchain-core")

Corrector = Callable[[Sequence[Exchange]], Sequence[str]]

GATES_OF_FEW = GatePolicy(criterion_margin=0.06, refusal_margin=0.06, damaged=0.1, health={"chosen_fallen": 0.4})
"""What the gates of a quick demo require: on so few questions the usual margins could never be shown."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Prompts that nothing is trained on, and right answers to prompts of the same kind."""

    gate: tuple[Exchange, ...]
    report: tuple[Exchange, ...]
    unseen: tuple[Exchange, ...]
    right: tuple[Exchange, ...]


def run_demo(
    *, rounds: int = 1, seed: int = 10, out: Path, quick: bool = False, say: Callable[[str], None], progress: bool
) -> dict[str, Any]:
    """Runs the demo in the folder `out` and returns its figures, which are also in `out/figures.json`.

    The folder also gets `report.html`, the store `corrections.db` and the registry under `home`.
    """
    # More threads write the answers of models this small no faster, and pools of them beside the trainer's are slower:
    # OpenMP stops spinning once there are more threads than cores.
    with cpu_threads(1) as threads:
        scale = replace(QUICK if quick else FULL, threads=threads)
        return Demo(out=out, seed=seed, scale=scale, say=say, progress=progress).run(rounds)


class Demo:
    """One run of the demo; the methods are its acts, in order."""

    def __init__(self, *, out: Path, seed: int, scale: Scale, say: Callable[[str], None], progress: bool) -> None:
        self.out, self.seed, self.scale, self.progress = out, seed, scale, progress
        self._say, self._started = say, time.monotonic()
        out.mkdir(parents=True, exist_ok=True)
        self.home, self.store = out / "home", out / "corrections.db"
        self.answering = Answering(sampling=Sampling(temperature=1.0, seed=seed), max_new=MAX_NEW)
        self.verifier = FlawedVerifier(seed)
        self.examples: list[Correction] = []

    def say(self, line: str) -> None:
        self._say(f"[{time.monotonic() - self._started:4.0f} s] {line}")

    def run(self, rounds: int) -> dict[str, Any]:
        self.start = self.make_start()
        self.held_out = self._draw_held_out()
        self.question_only = _remembering(self.start.question_only)
        gates = self._register_start()
        self.first = self._measure(self._served)
        table = [self._row(0, self.first, gates=gates)]
        for number in range(1, rounds + 1):
            self._live(number)
            result = self._round(number)
            table.append(self._row(number, self._measure(self._served), result=result))
        figures = self._figures(table)
        (self.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        write_report(figures, self.out / "report.html", examples=self.examples)
        return figures

    def make_start(self) -> Start:
        """Trains the start pair."""
        folder = self.out / "start"
        return Workshop(folder=folder, seed=self.seed, scale=self.scale, say=self.say, progress=self.progress).make()

    @property
    def _served(self) -> _Pair:
        pair = Registry(self.home).served()
        if pair is None or pair.upstream is None:
            message = "the demo serves a pair from its start on"
            raise RuntimeError(message)
        return _Pair(upstream=pair.upstream, aligner=pair.aligner)

    # --- acts --------------------------------------------------------------------------------------------------

    def _register_start(self) -> list[dict[str, Any]]:
        """Records the held-out prompts as live traffic would and serves the start pair through its gate."""
        with contextlib.closing(CorrectionStore(self.store)) as store:
            prompts = [*self.held_out.gate, *self.held_out.report]
            store.append(
                Correction(exchange=one, text="", outcome="skipped", reason="held-out prompt") for one in prompts
            )
        nulls = {"question only": self.question_only}
        _, gates = register_start(self.config(), nulls=nulls, say=self.say)
        return [asdict(gate) for gate in gates]

    def _live(self, number: int) -> None:
        """Live traffic through `llm | AlignerCorrector()`, collected as it goes by."""
        from langchain_core.runnables import RunnableConfig

        from aligner_chain.langchain import AlignerCorrector, LocalChatModel

        rng = random.Random(f"{self.seed} live {number}")
        tickets = [world.draw_training_ticket(rng, self.scale.desk) for _ in range(self.scale.live)]
        asked = [ticket.drawn_exchange(rng).question for ticket in tickets]
        configs = [
            RunnableConfig(configurable={"aligner_split_key": ticket.split_key}, max_concurrency=64)
            for ticket in tickets
        ]
        pair = self._served
        with (
            contextlib.closing(Aligner.from_pretrained(str(pair.aligner.path))) as aligner,
            contextlib.closing(CorrectionStore(self.store)) as store,
            contextlib.closing(Collector(store)) as collector,
        ):
            shown: list[Correction] = []

            def keep(correction: Correction) -> None:
                shown.append(correction)
                collector.submit(correction)

            llm = LocalChatModel(
                pair.upstream.path,
                identity=pair.upstream.identity,
                temperature=1.0,
                seed=self.seed,
                max_new_tokens=MAX_NEW,
            )
            chain = llm | AlignerCorrector(aligner=aligner, on_correction=keep)
            self.say(f"round {number}: {len(asked)} live questions through llm | AlignerCorrector()")
            chain.batch([*asked], config=configs)
            collector.flush()
            self.say(f"collected: {collector.counters}")
        if number == 1:
            self._show_examples(shown[:10])

    def _show_examples(self, corrections: Sequence[Correction]) -> None:
        """Prints live corrections as diffs with their reasons, and keeps them for the page."""
        self.examples = list(corrections)
        for correction in corrections:
            self._say(f"  Q: {correction.exchange.question}\n  A: {correction.diff()}\n     {correction.explain()}")

    def _round(self, number: int) -> RoundResult:
        with contextlib.closing(CorrectionStore(self.store)) as store:
            self.pairs = collect_pairs(store).pairs
        result = run_round(self.config(), say=self.say, progress=self.progress)
        self.say(f"round {number}: {result.status}")
        return result

    def config(self) -> RoundConfig:
        """What each of the demo's rounds is made of."""
        return RoundConfig(
            store=self.store,
            home=self.home,
            base_upstream=self.start.upstream,
            base_aligner=self.start.aligner,
            yardstick=YARDSTICK,
            verifier=self.verifier,
            annotator=annotate,
            gold=self.start.gold,
            known_right=self.held_out.right,
            answering=self.answering,
            dpo=demo_dpo(self.scale, self.seed),
            aligner=AlignerTrainingSettings(
                warm_up=None,
                correction=demo_training(
                    self.scale, self.seed, steps=self.scale.retrain_steps, rate=RETRAIN_RATE, bucketed=True
                ),
                seed=self.seed,
            ),
            # Models this small train in less time than a process takes to start.
            launcher=Launcher.here(),
            policy=GATES_OF_FEW if self.scale.gate < FULL.gate else GatePolicy(),
            least_pairs=20,
            regenerate=self.scale.live,
            seed=self.seed,
        )

    def _draw_held_out(self) -> HeldOut:
        """Draws prompts until both held-out sets are full; which set a prompt is in is the store's rule, not ours."""
        rng = random.Random(f"{self.seed} held out")
        sets: dict[str, dict[str, Exchange]] = {"gate": {}, "report": {}}
        wanted = {"gate": self.scale.gate, "report": self.scale.report}
        while any(len(sets[name]) < wanted[name] for name in sets):
            prompt = world.draw_held_out_ticket(rng, self.scale.desk).drawn_exchange(rng)
            split = split_of(prompt.turns, prompt.split_key)
            if len(sets[split]) < wanted[split]:
                sets[split][prompt.question] = prompt
        right = []
        for _ in range(self.scale.right):
            ticket = world.draw_held_out_ticket(rng, self.scale.desk)
            right.append(ticket.drawn_exchange(rng, world.right_answer(rng, ticket)))
        return HeldOut(
            gate=tuple(sets["gate"].values()),
            report=tuple(sets["report"].values()),
            unseen=tuple(world.draw_unseen_ticket(rng, self.scale.desk).exchange() for _ in range(self.scale.unseen)),
            right=tuple(right),
        )

    # --- figures -----------------------------------------------------------------------------------------------

    def _measure(self, pair: _Pair) -> _Report:
        """Asks and corrects the report set and the unseen products with the pair that is served."""
        answers, unseen = (
            self.answering.answer_from(pair.upstream.path, prompts, upstream=pair.upstream.identity)
            for prompts in (self.held_out.report, self.held_out.unseen)
        )
        with contextlib.closing(Aligner.from_pretrained(str(pair.aligner.path))) as aligner:
            corrected, corrected_unseen = aligner.correct(answers), aligner.correct(unseen)
            kept = [not one.changed for one in aligner.correct(self.held_out.right)]
        return _Report(
            measured=YARDSTICK.measure_corrections(corrected),
            unseen=YARDSTICK.measure_corrections(corrected_unseen),
            kept=share(kept),
        )

    def _row(
        self,
        number: int,
        report: _Report,
        *,
        result: RoundResult | None = None,
        gates: Sequence[Mapping[str, Any]] = (),
    ) -> dict[str, Any]:
        measured = report.measured
        changes = criteria_changes(self.first.measured.alone, measured.alone)
        row = {
            "round": number,
            **measured.figures(),
            "right_kept_share": report.kept,
            "criteria_paired_interval": {name: [one.low, one.high] for name, one in changes.items()},
            "held_out_wordings": _wordings(measured),
            "nulls": {name: self._null(null, measured) for name, null in self._nulls().items()},
            "unseen_products": report.unseen.figures(),
            "pairs": result.pairs if result else 0,
            "annotated": result.annotated if result else 0,
            "gates": [asdict(gate) for gate in result.gates] if result else list(gates),
        }
        if result:
            row |= {"status": result.status, "verified": result.verified, **self.compare()}
        self._say(show_row(row))
        return row

    def _nulls(self) -> dict[str, Corrector]:
        return {**NULLS, "question only": self.question_only}

    def _null(self, null: Corrector, measured: Measured) -> dict[str, Any]:
        figures = YARDSTICK.measure(measured.exchanges, null(measured.exchanges)).figures()
        texts = zip(null(self.held_out.right), self.held_out.right, strict=True)
        return {
            **figures["with_aligner"],
            "changed_share": figures["changed_share"],
            "edit_ratio_vs_minimal": figures["edit_ratio_vs_minimal"],
            "unchanged_sentences_kept_share": figures["unchanged_sentences_kept_share"],
            "right_kept_share": share([text == one.answer for text, one in texts]),
        }

    def compare(self) -> dict[str, Any]:
        """What stands beside a round: plain SFT on the chosen answers of the same pairs."""
        self.say("for comparison: SFT on the chosen answers alone")
        settings = demo_dpo(self.scale, self.seed, chosen_only=True)
        work, folder = self.out / "start" / "sft-work", self.out / "start" / "chosen-only"
        model = merged(train_upstream(self.start.upstream, self.pairs, work, settings, progress=self.progress))
        from bootstrap.upstream import save_model

        save_model(model, self.start.upstream, folder)
        answers = self.answering.answer_from(folder, self.held_out.report, upstream="chosen-only")
        measured = YARDSTICK.measure(answers, [one.answer for one in answers])
        return {"chosen_only": {**share_figures(measured.alone), "garbled_share": measured.figures()["garbled_share"]}}

    def _figures(self, table: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "scale": asdict(self.scale),
            "held_out": {name: len(getattr(self.held_out, name)) for name in ("gate", "report", "unseen", "right")},
            "rounds": table,
            "nulls": table[-1]["nulls"],
            "unseen_products": table[-1]["unseen_products"],
            "verifier": self.verifier.figures(),
            **machine_figures(self._started),
        }


@dataclass(frozen=True, kw_only=True)
class _Pair:
    upstream: Version
    aligner: Version


@dataclass(frozen=True, kw_only=True)
class _Report:
    measured: Measured
    unseen: Measured
    kept: float


def machine_figures(started: float, libraries: Sequence[str] = LIBRARIES) -> dict[str, Any]:
    """What a run took since `started` (of `time.monotonic`), and on what it ran."""
    return {
        "seconds": round(time.monotonic() - started, 1),
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "machine": {"processor": platform.machine(), "cpus": os.cpu_count()},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in libraries},
    }


def show_row(row: Mapping[str, Any]) -> str:
    """One round as lines of a table for the terminal."""
    alone, aligned = row["upstream_alone"], row["with_aligner"]
    lines = [
        f"\n  round {row['round']}, {row['n']} held-out questions      fully right        95 % interval",
        f"    upstream alone                     {_percent(alone)}",
        f"    with the Aligner                   {_percent(aligned)}",
        *(f"    null: {name:<28} {_percent(null)}" for name, null in row["nulls"].items()),
    ]
    if "chosen_only" in row:
        lines.append(f"    SFT on chosen alone, no Aligner    {_percent(row['chosen_only'])}")
    lines += [
        "    alone by criterion: " + ", ".join(f"{name} {value:.1%}" for name, value in alone["criteria"].items()),
        "    with it:            " + ", ".join(f"{name} {value:.1%}" for name, value in aligned["criteria"].items()),
        f"    changed {row['changed_share']:.1%}, wrong left alone {row['wrong_left_share']:.1%}",
        f"    garbled {row['garbled_share']:.1%}, right answers kept {row['right_kept_share']:.1%}",
        f"    edits against minimal {_number(row['edit_ratio_vs_minimal'])}",
        f"    unchanged sentences kept {_number(row['unchanged_sentences_kept_share'])}",
        f"    new wordings:    {_both(row['held_out_wordings'])}",
        f"    unseen products: {_both(row['unseen_products'])}",
    ]
    return "\n".join(lines) + "\n"


def _percent(figures: Mapping[str, Any]) -> str:
    low, high = figures["interval"]
    return f"{figures['fully_right']:>10.1%}         {low:.1%} to {high:.1%}"


def _both(figures: Mapping[str, Any]) -> str:
    alone, aligned = figures["upstream_alone"]["fully_right"], figures["with_aligner"]["fully_right"]
    return f"alone {alone:.1%}, with the Aligner {aligned:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _wordings(measured: Measured) -> dict[str, Any]:
    """The figures of the held-out prompts whose entire wording was held out."""
    rows = [
        index
        for index, exchange in enumerate(measured.exchanges)
        if world.read_ticket(exchange).wording in world.HELD_OUT_WORDINGS
    ]
    return {
        "n": len(rows),
        "upstream_alone": share_figures([measured.alone[index] for index in rows]),
        "with_aligner": share_figures([measured.aligned[index] for index in rows]),
    }


def _remembering(corrector: Corrector) -> Corrector:
    """The corrector, asked once per question, for one that sees nothing else."""

    @cache
    def known(exchanges: tuple[Exchange, ...]) -> list[str]:
        return list(corrector(exchanges))

    return lambda exchanges: known(tuple(replace(one, answer="", upstream=None) for one in exchanges))
