"""One round: what live chains collected becomes a better upstream and an Aligner that fits it, or nothing changes.

    freeze -> pairs -> DPO -> gate -> answer anew -> correct -> verify, annotate -> train the Aligner -> gate -> promote

Each step is a method of `_Round`, in this order. Nothing is served before both gates were passed; the pair that is
served stays as it is whatever fails on the way.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from aligner_chain.aligner import Aligner
from aligner_chain.checkpoint import read_metadata, write_metadata
from aligner_chain.errors import AlignerError
from aligner_chain.exchange import Correction, Exchange
from bootstrap.aligner_training import AlignerTrainingSettings, train_aligner
from bootstrap.answering import Answering
from bootstrap.errors import NotEnoughPairsError, RegistryError, StageError
from bootstrap.evaluation import GateResult, non_inferiority_gate, share_gate, superiority_gate
from bootstrap.judges import Annotator, Verifier
from bootstrap.measures import Measured, Yardstick
from bootstrap.pairs import PairSet, Triple, collect_pairs, manifest, triples
from bootstrap.registry import PairVersion, Registry, Version
from bootstrap.store import CorrectionStore
from bootstrap.upstream import DPOSettings, save_model, train_upstream

REFUSAL = "I am sorry, but I cannot help with that."
"""What the null corrector that always refuses serves."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class RoundConfig:
    """What a round is made of.

    Args:
        store: the file of the `CorrectionStore`.
        home: the folder of the `Registry`; None takes `ALIGNER_HOME`.
        base_upstream: the model folder that every round's candidate starts from.
        base_aligner: the Aligner folder that every round's candidate starts from.
        yardstick: how held-out answers are judged.
        verifier: confirms corrections before the Aligner is trained on them.
        annotator: repairs what the verifier refused, at most `annotations` rows; None leaves them out.
        gold: rows that are in every training set of the Aligner.
        known_right: right answers of which 98 % must be kept; None takes those of the gate set that are judged right.
        answering: how upstreams are asked.
        margin: how far below 0 the lower bound of an Aligner's change may be, as a share. Of n gate prompts without any
            change it is about 3.84 / n, so 1 point needs 384 of them.
        pair_margin: the same for the new pair as a whole against the served one. An upstream that needs less correcting
            leaves subtler faults, so a little may be lost here while the Aligner itself got better.
        least_pairs: fewer pairs than this are not trained on.
        regenerate: at most so many training prompts are answered anew.
    """

    store: Path
    base_upstream: Path
    base_aligner: Path
    yardstick: Yardstick
    verifier: Verifier
    home: Path | None = None
    annotator: Annotator | None = None
    annotations: int = 200
    gold: tuple[Triple, ...] = ()
    known_right: tuple[Exchange, ...] | None = None
    answering: Answering = field(default_factory=Answering)
    dpo: DPOSettings = field(default_factory=DPOSettings)
    aligner: AlignerTrainingSettings = field(default_factory=AlignerTrainingSettings)
    margin: float = 0.01
    pair_margin: float = 0.03
    least_pairs: int = 50
    regenerate: int = 2000
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """How a round ended: `promoted` or `rejected` (a gate refused a candidate). Shares are between 0 and 1."""

    status: str
    pair: PairVersion | None
    gates: tuple[GateResult, ...]
    pairs: int
    dropped: Mapping[str, int]
    verified: int
    annotated: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The result ready for JSON."""
        pair = self.pair and {"number": self.pair.number, "aligner": self.pair.aligner.identity}
        rest = {name: getattr(self, name) for name in ("status", "pairs", "verified", "annotated", "seconds")}
        return {**rest, "dropped": dict(self.dropped), "pair": pair, "gates": [asdict(gate) for gate in self.gates]}


def run_round(config: RoundConfig, *, say: Say = lambda line: None, progress: bool = False) -> RoundResult:
    """Runs one round and promotes the new pair if it passes its gates.

    Args:
        say: is told each step in a line.
        progress: shows training progress on the terminal.

    Raises:
        NotEnoughPairsError: too little was collected.
        RegistryError: no pair is served yet.
        StageError: a step failed; its error is the cause. The pair that was served still is.
    """
    with contextlib.ExitStack() as stack:
        current = _Round(config, say, progress, stack)
        pairs = current.build_pairs()
        upstream = current.train_upstream(pairs)
        gate_answers = current.gate_upstream(upstream)
        if not current.passed():
            return current.finish(pairs, None)
        rows = current.collect_triples(upstream)
        aligner = current.train_aligner(rows)
        current.gate_aligner(aligner, gate_answers)
        if not current.passed():
            return current.finish(pairs, None)
        return current.finish(pairs, current.promote(upstream, aligner))


def register_start(
    config: RoundConfig,
    *,
    nulls: Mapping[str, Callable[[Sequence[Exchange]], Sequence[str]]] | None = None,
    say: Say = lambda line: None,
) -> tuple[PairVersion, tuple[GateResult, ...]]:
    """Registers and serves the base pair if its Aligner repairs more than each null corrector.

    `nulls` are correctors that need no Aligner; copying and refusing are always among them.

    Raises:
        RegistryError: a null corrector is as good; nothing is served then.
    """
    registry = Registry(config.home)
    with contextlib.closing(CorrectionStore(config.store)) as store:
        prompts = store.prompts("gate")
    answers = config.answering.answer_from(config.base_upstream, prompts, upstream="upstream@1")
    with contextlib.closing(Aligner.from_pretrained(str(config.base_aligner))) as aligner:
        measured = config.yardstick.measure_corrections(aligner.correct(answers))
    gates = []
    for name, null in {**NULLS, **(nulls or {})}.items():
        before = config.yardstick.measure(answers, null(answers)).repaired
        gates.append(superiority_gate(f"start Aligner against {name}", before, measured.repaired))
        say(f"gate {gates[-1].name}: {_word(gates[-1])}, {gates[-1].reason}")
    if not all(gate.passed for gate in gates):
        reasons = "; ".join(f"{gate.name}: {gate.reason}" for gate in gates if not gate.passed)
        message = f"The start pair was not registered, its Aligner is no better than doing nothing. {reasons}."
        raise RegistryError(message)
    upstream = registry.add("upstream", _copier(config.base_upstream), {"base": str(config.base_upstream)})
    aligner_version = registry.add("aligner", _copier(config.base_aligner), {"base": str(config.base_aligner)})
    return registry.promote(upstream, aligner_version, figures=measured.figures()), tuple(gates)


def copy_corrector(exchanges: Sequence[Exchange]) -> list[str]:
    """The null corrector that changes nothing."""
    return [exchange.answer for exchange in exchanges]


def refuse_corrector(exchanges: Sequence[Exchange]) -> list[str]:
    """The null corrector that refuses everything."""
    return [REFUSAL for _ in exchanges]


NULLS: Mapping[str, Callable[[Sequence[Exchange]], Sequence[str]]] = {
    "copy": copy_corrector,
    "refuse": refuse_corrector,
}


class _Round:
    """The steps of one round over what they share; `gates` grows as they go."""

    def __init__(self, config: RoundConfig, say: Say, progress: bool, stack: contextlib.ExitStack) -> None:
        self.config, self.say, self.progress = config, say, progress
        self.started = time.monotonic()
        self.registry = Registry(config.home)
        served = self.registry.served()
        if served is None or served.upstream is None:
            message = (
                "No pair of an upstream and an Aligner is served, so there is nothing to improve on. Register a start "
                "pair with `aligner-bootstrap round run --start`, or see `aligner-bootstrap demo`."
            )
            raise RegistryError(message)
        self.served = served
        self.store = stack.enter_context(contextlib.closing(CorrectionStore(config.store)))
        self.work = self.registry.home / "work" / f"pair-{served.number}"
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        stack.callback(shutil.rmtree, self.work, ignore_errors=True)
        self.gates: list[GateResult] = []
        self._answered: dict[tuple[Any, ...], list[Exchange]] = {}
        self.verified = self.annotated = 0

    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)

    def build_pairs(self) -> PairSet:
        """Freezes the training split as it is now into preference pairs."""
        with self._stage("build pairs"):
            pairs = collect_pairs(self.store, minimum=self.config.least_pairs)
            self.say(f"{len(pairs.pairs)} pairs from live corrections, left out {dict(pairs.dropped)}")
            return pairs

    def train_upstream(self, pairs: PairSet) -> Version:
        """Trains a fresh candidate from the base on all pairs so far."""
        base, settings = self.config.base_upstream, self.config.dpo
        with self._stage("train the upstream"):
            self.say(f"DPO on {len(pairs.pairs)} pairs")
            model = train_upstream(base, pairs.pairs, self.work / "dpo", settings, progress=self.progress)
            described = {"base": str(base), "data": manifest(pairs.pairs, pairs.dropped), "parent": self.served.number}
            return self.registry.add("upstream", lambda folder: save_model(model, base, folder), described)

    def gate_upstream(self, candidate: Version) -> list[Exchange]:
        """Lets the candidate answer the gate prompts and compares it, alone, with the upstream that is served."""
        with self._stage("gate the upstream"):
            prompts = self.store.prompts("gate")
            before, after = self._answers(self._upstream, prompts), self._answers(candidate, prompts)
            rights = [self._right_alone(answers) for answers in (before, after)]
            self._decide(superiority_gate("upstream alone", *rights))
            return after

    def collect_triples(self, candidate: Version) -> list[Triple]:
        """Rows for the Aligner: gold, confirmed corrections of the candidate's answers, and annotated failures."""
        rng = random.Random(self.config.seed)
        with self._stage("correct the candidate's answers"):
            prompts = self.store.prompts("train")
            prompts = rng.sample(prompts, min(len(prompts), self.config.regenerate))
            corrections = self._correct(self.served.aligner, self._answers(candidate, prompts))
            confirmed = self.config.verifier(corrections)
            good = [one for one, fit in zip(corrections, confirmed, strict=True) if fit]
            bad = [one.exchange for one, fit in zip(corrections, confirmed, strict=True) if not fit]
            verified = triples(good, source="verified").triples
            annotated = self._annotate(rng.sample(bad, min(len(bad), self.config.annotations)))
            self.verified, self.annotated = len(verified), len(annotated)
            self.say(f"{len(verified)} corrections confirmed, {len(bad)} refused, {len(annotated)} of them annotated")
            return [*self.config.gold, *verified, *annotated]

    def train_aligner(self, rows: Sequence[Triple]) -> Version:
        """Trains a candidate Aligner from the base on all rows."""
        base, settings = self.config.base_aligner, self.config.aligner
        with self._stage("train the Aligner"):
            from transformers import AutoModelForCausalLM, AutoTokenizer

            model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
            trained = train_aligner(model, tokenizer, rows, self.work / "aligner", settings, progress=self.progress)
            self.say(f"Aligner trained on {trained.rows} rows, {trained.keep_share:.0%} of them right answers")
            pinned = manifest(rows, trained.dropped)

            def write(folder: Path) -> None:
                save_model(trained.model, base, folder)
                digest = pinned["sha256"]
                metadata = replace(read_metadata(base), version=digest[:12], data_sha256=digest, calibrations={})
                write_metadata(folder, metadata)  # a threshold measured on the base says nothing of the candidate

            return self.registry.add("aligner", write, {"base": str(base), "data": pinned})

    def gate_aligner(self, candidate: Version, answers: Sequence[Exchange]) -> None:
        """Compares the candidate with the served Aligner on the new upstream's answers, and the pairs as a whole."""
        with self._stage("gate the Aligner"):
            measure = self.config.yardstick.measure_corrections
            old_on_new = measure(self._correct(self.served.aligner, answers))
            new = measure(self._correct(candidate, answers))
            old = measure(self._correct(self.served.aligner, self._answers(self._upstream, answers)))
            for name, before, margin in (
                ("Aligner on the new upstream", old_on_new, self.config.margin),
                ("new pair against served pair", old, self.config.pair_margin),
            ):
                self._decide(non_inferiority_gate(name, before.right_aligned, new.right_aligned, margin))
            self._decide(self._kept_gate(candidate, new))
            self.figures = new.figures()

    def promote(self, upstream: Version, aligner: Version) -> PairVersion:
        with self._stage("promote"):
            pair = self.registry.promote(upstream, aligner, figures=self.figures, expected=self.served)
            self.say(f"promoted pair {pair.number}: {upstream.identity} with {aligner.identity}")
            return pair

    def finish(self, pairs: PairSet, pair: PairVersion | None) -> RoundResult:
        result = RoundResult(
            status="promoted" if pair else "rejected",
            pair=pair,
            gates=tuple(self.gates),
            pairs=len(pairs.pairs),
            dropped=pairs.dropped,
            verified=self.verified,
            annotated=self.annotated,
            seconds=time.monotonic() - self.started,
        )
        log = self.registry.home / "rounds.jsonl"
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time.time(), **result.as_dict()}) + "\n")
        return result

    @property
    def _upstream(self) -> Version:
        if self.served.upstream is None:
            raise RegistryError("The served pair has no local upstream, so none can be trained.")
        return self.served.upstream

    def _kept_gate(self, candidate: Version, new: Measured) -> GateResult:
        if self.config.known_right is None:
            kept = [not moved for moved, right in zip(new.changed, new.right_alone, strict=True) if right]
        else:
            kept = [not one.changed for one in self._correct(candidate, self.config.known_right)]
        return share_gate("right answers kept", sum(kept), len(kept), 0.98)

    def _annotate(self, exchanges: Sequence[Exchange]) -> list[Triple]:
        if self.config.annotator is None or not exchanges:
            return []
        repaired = self.config.annotator(exchanges)
        return [one.triple(exchange, "annotated") for exchange, one in zip(exchanges, repaired, strict=True)]

    def _answers(self, version: Version, prompts: Sequence[Exchange]) -> list[Exchange]:
        key = (version.identity, tuple(prompt.turns for prompt in prompts))
        if key not in self._answered:
            self._answered[key] = self.config.answering.answer_from(version.path, prompts, upstream=version.identity)
        return self._answered[key]

    def _correct(self, version: Version, exchanges: Sequence[Exchange]) -> list[Correction]:
        with contextlib.closing(Aligner.from_pretrained(str(version.path))) as aligner:
            return aligner.correct(exchanges)

    def _right_alone(self, answers: Sequence[Exchange]) -> list[bool]:
        return [all(verdict.values()) for verdict in self.config.yardstick.judge(answers)]

    def _decide(self, gate: GateResult) -> None:
        self.gates.append(gate)
        self.say(f"gate {gate.name}: {_word(gate)}, {gate.reason}")

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        try:
            yield
        except (NotEnoughPairsError, RegistryError):
            raise
        except (AlignerError, OSError, RuntimeError, ValueError) as error:
            message = f"The round stopped where it should {name}: {error}. Pair {self.served.number} is still served."
            raise StageError(message) from error


def _word(gate: GateResult) -> str:
    return "passed" if gate.passed else "refused"


def _copier(source: Path) -> Callable[[Path], object]:
    return lambda folder: shutil.copytree(source, folder, dirs_exist_ok=True)
