"""The demo with passages from end to end: train the pair, gate it, ask the app, and count what became of contradictions.

Every held-out answer comes from the whole LlamaIndex app: retrieved, answered, corrected and collected. An answer counts
as contradicting where the world cannot read from it what its passage says; as repaired where the served text agrees.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner_chain.aligner import Aligner
from aligner_chain.exchange import Correction, Exchange
from bootstrap.collect import Collector
from bootstrap.demo import rag_world, world
from bootstrap.demo.rag_app import (
    HOME,
    rag_app,
    read_policy,
    require_llama_index,
    served_app,
    upstream_llm,
    write_policy,
)
from bootstrap.demo.rag_start import RagStart, RagWorkshop
from bootstrap.demo.rag_world import Case
from bootstrap.demo.scale import RAG_FULL, RAG_QUICK, RagScale
from bootstrap.demo.show import machine_figures
from bootstrap.demo.world import Ticket
from bootstrap.errors import RegistryError
from bootstrap.evaluation import GateResult, superiority_gate, wilson
from bootstrap.measures import share, share_figures
from bootstrap.records import split_of
from bootstrap.registry import Registry
from bootstrap.rounds import NULLS
from bootstrap.sft import cpu_threads
from bootstrap.store import CorrectionStore

if TYPE_CHECKING:
    from llama_index.core.query_engine import RetrieverQueryEngine

GROUPS: Mapping[str, Sequence[str]] = {
    "known products": rag_world.KNOWN_PRODUCTS,
    "unseen products": rag_world.UNSEEN_PRODUCTS,
}
LIBRARIES = ("torch", "transformers", "trl", "llama-index-core", "llama-index-retrievers-bm25")
_AT_ONCE = 128
_EXAMPLES = 6


def run_rag_demo(
    *, seed: int = 10, out: Path, quick: bool = False, say: Callable[[str], None], progress: bool
) -> dict[str, Any]:
    """Runs the demo in the folder `out` and returns its figures, which are also in `out/figures.json`.

    The folder also gets the corpus `policy.jsonl`, the records `corrections.db` and the registry under `home`.

    Raises:
        MissingExtraError: LlamaIndex or its BM25 retriever is missing.
        RegistryError: the Aligner is no better than none; nothing is served.
    """
    require_llama_index()
    # One thread beside the trainer's, as in the plain demo.
    with cpu_threads(1) as threads:
        scale = replace(RAG_QUICK if quick else RAG_FULL, threads=threads)
        return RagDemo(out=out, seed=seed, scale=scale, say=say, progress=progress).run()


@dataclass(frozen=True, kw_only=True)
class Question:
    """A held-out question: what it is about and how it is asked."""

    ticket: Ticket
    text: str


class RagDemo:
    """One run of the demo; the methods are its acts, in order."""

    def __init__(self, *, out: Path, seed: int, scale: RagScale, say: Callable[[str], None], progress: bool) -> None:
        self.out, self.seed, self.scale, self.progress = out, seed, scale, progress
        self._say, self._started = say, time.monotonic()
        out.mkdir(parents=True, exist_ok=True)
        self.policy = rag_world.desk_policy(seed)

    def say(self, line: str) -> None:
        self._say(f"[{time.monotonic() - self._started:4.0f} s] {line}")

    def run(self) -> dict[str, Any]:
        write_policy(self.policy, self.out)
        start = RagWorkshop(
            folder=self.out / "start", seed=self.seed, scale=self.scale, say=self.say, progress=self.progress
        ).make()
        gates = self._register(start)
        with contextlib.closing(CorrectionStore(self.out / "corrections.db")) as store:
            corrections = self._ask_served(store)
        self._show_examples(corrections)
        figures = self._figures(corrections, self._keep_right(), gates)
        (self.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        self._say(show_figures(figures))
        return figures

    # --- acts --------------------------------------------------------------------------------------------------

    def _register(self, start: RagStart) -> list[GateResult]:
        """Serves the pair if the Aligner makes more answers agree with their passages than each null corrector."""
        seen: list[Correction] = []
        with contextlib.closing(Aligner.from_pretrained(start.aligner)) as aligner:
            llm = upstream_llm(start.upstream, identity="upstream@1", seed=self.seed)
            app = rag_app(read_policy(self.out), llm, aligner, on_correction=seen.append)
            ask(app, self._questions("gate", self.scale.gate))
        answers = [one.exchange for one in seen]
        after = [agrees(one) for one in seen]
        gates = []
        for name, null in NULLS.items():
            before = [
                rag_world.agrees(replace(one, answer=text)) for one, text in zip(answers, null(answers), strict=True)
            ]
            gates.append(superiority_gate(f"start Aligner against {name}", before, after))
            self.say(f"gate {gates[-1].name}: {'passed' if gates[-1].passed else 'refused'}, {gates[-1].reason}")
        if not all(gate.passed for gate in gates):
            message = "The pair was not registered: its Aligner is no better than doing nothing. Try another --seed."
            raise RegistryError(message)
        registry = Registry(self.out / HOME)
        upstream = registry.add("upstream", _copier(start.upstream), {"base": str(start.upstream)})
        served = registry.add("aligner", _copier(start.aligner), {"base": str(start.aligner)})
        registry.promote(upstream, served, figures={gate.name: asdict(gate) for gate in gates})
        return gates

    def _ask_served(self, store: CorrectionStore) -> list[Correction]:
        """Asks the app that is served all held-out questions; the collector keeps the records, passages included."""
        questions = self._questions("report", self.scale.report)
        self.say(f"asking the LlamaIndex app {len(questions)} held-out questions")
        seen: dict[str, Correction] = {}
        with contextlib.closing(Collector(store)) as collector:

            def keep(correction: Correction) -> None:
                seen[correction.exchange.question] = correction
                collector.submit(correction)

            app = served_app(self.out, on_correction=keep, seed=self.seed)
            ask(app, questions)
            collector.flush()
            self.say(f"collected: {collector.counters}")
        return [seen[question.text] for question in questions]

    def _keep_right(self) -> list[Correction]:
        """Gives the Aligner that is served right answers under the passages that the app retrieves for them."""
        rng = random.Random(f"{self.seed} right answers")
        app = served_app(self.out)
        right = []
        for question in self._questions("right", self.scale.right):
            passages = tuple(node.node.get_content() for node in app.retrieve(_bundle(question.text)))
            answer = rag_world.right_answer(rng, Case(ticket=question.ticket, policy=self.policy))
            right.append(Exchange.of(question.text, answer, context=passages))
        pair = Registry(self.out / HOME).served()
        if pair is None:
            message = "the demo serves a pair by now"
            raise RuntimeError(message)
        with contextlib.closing(Aligner.from_pretrained(pair.aligner.path)) as aligner:
            return aligner.correct(right)

    def _questions(self, purpose: str, count: int) -> list[Question]:
        """Different held-out questions, as many about known products as about unseen ones."""
        rng, asked = random.Random(f"{self.seed} {purpose}"), dict[str, Question]()
        groups = tuple(GROUPS.values())
        while len(asked) < count:
            ticket = rag_world.draw_held_out_ticket(rng, groups[len(asked) % 2], self.policy)
            exchange = ticket.drawn_exchange(rng)
            if _in_set(purpose, exchange):
                asked.setdefault(exchange.question, Question(ticket=ticket, text=exchange.question))
        return list(asked.values())

    def _show_examples(self, corrections: Sequence[Correction]) -> None:
        """Prints a few corrections of contradictions, and an answer that was kept."""
        wrong = [one for one in corrections if not rag_world.agrees(one.exchange)]
        kept = [one for one in corrections if not one.changed]
        for correction in (*wrong[:_EXAMPLES], *kept[:1]):
            passages = "\n".join(f"     | {passage}" for passage in correction.exchange.context)
            asked = f"  Q: {correction.exchange.question}\n{passages}"
            self._say(f"{asked}\n  A: {correction.diff()}\n     {correction.explain()}\n")

    # --- figures -----------------------------------------------------------------------------------------------

    def _figures(
        self, corrections: Sequence[Correction], right: Sequence[Correction], gates: Sequence[GateResult]
    ) -> dict[str, Any]:
        in_group = {
            name: [one for one in corrections if _product(one.exchange) in products]
            for name, products in GROUPS.items()
        }
        kept = [not one.changed for one in right]
        return {
            "seed": self.seed,
            "scale": asdict(self.scale),
            "all products": contradiction_figures(corrections),
            **{name: contradiction_figures(group) for name, group in in_group.items()},
            "right answers": {
                **_share_of(kept),
                **{
                    name: _share_of(
                        [flag for flag, one in zip(kept, right, strict=True) if _product(one.exchange) in products]
                    )
                    for name, products in GROUPS.items()
                },
                "approved_by_verdict": share([not one.changed and not one.reason for one in right]),
            },
            "gates": [asdict(gate) for gate in gates],
            **machine_figures(self._started, LIBRARIES),
        }


def ask(app: RetrieverQueryEngine, questions: Sequence[Question]) -> None:
    """Asks the app all questions, many at the same time; what came of them is for its `on_correction`."""
    from llama_index_instrumentation.dispatcher import instrument_tags

    async def one(question: Question, turn: asyncio.Semaphore) -> None:
        async with turn:
            with instrument_tags({"aligner_split_key": question.ticket.split_key}):
                await app.aquery(question.text)

    async def everything() -> None:
        turn = asyncio.Semaphore(_AT_ONCE)
        await asyncio.gather(*(one(question, turn) for question in questions))

    asyncio.run(everything())


def agrees(correction: Correction) -> bool:
    """Whether what was served agrees with its passage."""
    return rag_world.agrees(replace(correction.exchange, answer=correction.text))


def contradiction_figures(corrections: Sequence[Correction]) -> dict[str, Any]:
    """How many answers contradicted their passages and how many of them were repaired, and what else was measured."""
    wrong = [one for one in corrections if not rag_world.agrees(one.exchange)]
    measured = rag_world.YARDSTICK.measure_corrections(corrections)
    return {
        "questions": len(corrections),
        "contradicting": len(wrong),
        "repaired": _share_of([agrees(one) for one in wrong]),
        "garbled": _share_of([rag_world.is_garbled(one.exchange.answer) for one in corrections]),
        "upstream_alone": share_figures(measured.alone),
        "with_aligner": share_figures(measured.aligned),
        "outcomes": dict(Counter(one.outcome for one in corrections)),
    }


def show_figures(figures: Mapping[str, Any]) -> str:
    """The figures as lines for the terminal."""
    groups = ("all products", *GROUPS)
    lines = [
        "  held-out answers that contradict their passage   repaired         95 % interval",
        *(f"    {name:<44}{_line(figures[name]['repaired'])}" for name in groups),
        f"  right answers kept byte for byte              {_line(figures['right answers'])}",
    ]
    for name in groups:
        alone, aligned = (figures[name][side]["fully_right"] for side in ("upstream_alone", "with_aligner"))
        lines.append(f"  fully right, {name:<17} alone {alone:.1%}, with the Aligner {aligned:.1%}")
    lines.append(f"  garbled upstream answers {figures['all products']['garbled']['share']:.1%}")
    return "\n" + "\n".join(lines) + "\n"


def _copier(source: Path) -> Callable[[Path], object]:
    return lambda folder: shutil.copytree(source, folder, dirs_exist_ok=True)


def _line(figures: Mapping[str, Any]) -> str:
    low, high = figures["interval"]
    return f"{figures['k']:>5} of {figures['n']:<5} {figures['share']:>7.1%}   {low:.1%} to {high:.1%}"


def _share_of(flags: Sequence[bool]) -> dict[str, Any]:
    return {"k": sum(flags), "n": len(flags), "share": share(flags), "interval": list(wilson(sum(flags), len(flags)))}


def _product(exchange: Exchange) -> str:
    return world.read_ticket(exchange, rag_world.GRAMMAR).product


def _in_set(purpose: str, exchange: Exchange) -> bool:
    """Gate questions are asked of the gate set; all others of the report set. Which is which is the store's rule."""
    return (split_of(exchange.turns, exchange.split_key) == "gate") == (purpose == "gate")


def _bundle(question: str) -> Any:
    from llama_index.core.schema import QueryBundle

    return QueryBundle(question)
