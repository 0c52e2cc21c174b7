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
from bootstrap.errors import RegistryError
from bootstrap.registry import PairVersion, Registry, Version
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
    def served_upstream(self) -> Version:
        if self.parent.upstream is None:
            raise RegistryError("The served pair has no local upstream, so none can be trained.")
        return self.parent.upstream

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
