"""The first pair: it is served if its Aligner does more good than correctors that need no model."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from aligner_chain.aligner import Aligner
from aligner_chain.exchange import Exchange
from bootstrap.errors import RegistryError
from bootstrap.evaluation import GateResult, superiority_gate
from bootstrap.judges.roles import failures_told
from bootstrap.measures import Measured
from bootstrap.registry import PairVersion, Registry
from bootstrap.rounds.config import RoundConfig
from bootstrap.rounds.nulls import NULLS
from bootstrap.rounds.recorded import MORE_HELD_OUT, recorded_answers
from bootstrap.rounds.work import Say
from bootstrap.store import CorrectionStore


def register_start(
    config: RoundConfig,
    *,
    nulls: Mapping[str, Callable[[Sequence[Exchange]], Sequence[str]]] | None = None,
    say: Say = lambda line: None,
) -> tuple[PairVersion, tuple[GateResult, ...]]:
    """Registers and serves the base pair if its Aligner repairs more than each null corrector.

    Without a `base_upstream` it is the Aligner alone, measured on the recorded answers of the provider's upstream.

    `nulls` are correctors that need no Aligner; copying and refusing are always among them.

    Raises:
        RegistryError: a null corrector is as good, nothing was held out to measure by, or another pair came to be served
            meanwhile; nothing is promoted then.
        JudgeError: the judge failed; the same.
    """
    registry = Registry(config.home, config.registry)
    before = registry.served()
    with contextlib.closing(CorrectionStore(config.store)) as store:
        prompts = recorded_answers(store, "gate") if config.base_upstream is None else store.prompts("gate")
    if not prompts:
        raise RegistryError(
            "The start pair was not registered: no held-out prompt was collected yet, and the Aligner is measured by these "
            f"alone.\n{MORE_HELD_OUT}"
        )
    answers = prompts
    if config.base_upstream is not None:
        answers = config.answering.answer_from(config.base_upstream, prompts, upstream="upstream@1")
    with contextlib.closing(Aligner.from_pretrained(str(config.base_aligner))) as aligner:
        corrections = aligner.correct(answers)
    with failures_told("The start pair was not registered, its answers could not be judged"):
        measured = config.yardstick.measure_corrections(corrections)
        gates = _gates(config, measured, {**NULLS, **(nulls or {})}, say)
    if not all(gate.passed for gate in gates):
        reasons = "; ".join(f"{gate.name}: {gate.reason}" for gate in gates if not gate.passed)
        message = f"The start pair was not registered, its Aligner is no better than doing nothing. {reasons}."
        raise RegistryError(message)
    upstream = None
    if config.base_upstream is not None:
        upstream = registry.add("upstream", _copier(config.base_upstream), {"base": str(config.base_upstream)})
    aligner_version = registry.add("aligner", _copier(config.base_aligner), {"base": str(config.base_aligner)})
    pair = registry.promote(upstream, aligner_version, figures=measured.figures(), expected=before)
    return pair, tuple(gates)


def _gates(
    config: RoundConfig,
    measured: Measured,
    nulls: Mapping[str, Callable[[Sequence[Exchange]], Sequence[str]]],
    say: Say,
) -> list[GateResult]:
    """The Aligner against each null corrector on the same answers."""
    gates = []
    for name, null in nulls.items():
        repaired = config.yardstick.measure(measured.exchanges, null(measured.exchanges)).repaired
        gates.append(superiority_gate(f"start Aligner against {name}", repaired, measured.repaired))
        say(f"gate {gates[-1].name}: {'passed' if gates[-1].passed else 'refused'}, {gates[-1].reason}")
    return gates


def _copier(source: Path) -> Callable[[Path], object]:
    return lambda folder: shutil.copytree(source, folder, dirs_exist_ok=True)
