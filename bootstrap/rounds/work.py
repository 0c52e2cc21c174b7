"""What a stage is given: the settings, the pair to improve on, and what the stages before it left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligner_chain.aligner import Aligner
from aligner_chain.exchange import Correction, Exchange
from bootstrap.database.fences import Fence
from bootstrap.registry import PairVersion, Registry
from bootstrap.rounds.config import RoundConfig

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Work:
    """One round at work.

    `results` and `folders` are those of the stages that are done; `root` is the round's folder. `parent` is the pair
    that was served when the round was planned, `fence` that of the lease under which the stage runs.
    """

    number: int
    config: RoundConfig
    registry: Registry
    parent: PairVersion
    root: Path
    fence: Fence | None
    results: dict[str, Mapping[str, Any]]
    folders: dict[str, Path]
    say: Say
    progress: bool

    @property
    def refused(self) -> str:
        """Why the served upstream stays, and this round improves the Aligner alone; "" where there is a better candidate."""
        reasons = (self.results.get(stage, {}).get("skipped") for stage in ("train_upstream", "gate_upstream"))
        return next(filter(None, reasons), "") or str(self.results.get("gate_upstream", {}).get("refused", ""))

    @property
    def aligner_refused(self) -> str:
        """Why the served Aligner stays, beside a better upstream; "" where the round's own Aligner is promoted or none is."""
        return str(self.results.get("gate_pair", {}).get("refused", ""))

    @property
    def measured(self) -> str:
        """The pair of this round, as `evaluate_pair` calls it."""
        return "served_on_new" if self.aligner_refused else "candidate_on_new"

    @property
    def answered(self) -> str:
        """The answers to the gate prompts that the Aligner must fit, as `evaluate_upstream` calls them."""
        return "before" if self.refused else "after"

    @property
    def upstream(self) -> tuple[Path, str] | None:
        """The folder and the identity of the upstream that the Aligner must fit; None where it is a provider's."""
        if not self.refused:
            return self.folders["train_upstream"] / "model", self.candidate
        served = self.parent.upstream
        return None if served is None else (served.path, served.identity)

    @property
    def candidate(self) -> str:
        """The identity of a model that has no version yet, as exchanges record it."""
        return f"candidate@round-{self.number}"

    def scratch(self, stage: str) -> Path:
        """A folder that all attempts of a stage share: a trainer's checkpoints."""
        return self.root / f"{stage}.work"

    def answers(self, folder: Path, prompts: Sequence[Exchange], upstream: str) -> list[Exchange]:
        return self.config.answering.answer_from(folder, prompts, upstream=upstream)

    def corrections(self, folder: Path, exchanges: Sequence[Exchange]) -> list[Correction]:
        with contextlib.closing(Aligner.from_pretrained(str(folder))) as aligner:
            return aligner.correct(exchanges)
