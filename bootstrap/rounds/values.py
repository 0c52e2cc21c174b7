"""What the ledger knows of a round and its stages, and what came of a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

RoundStatus = Literal["running", "failed", "promoted", "held", "rejected", "skipped", "aborted"]
"""`running` also after a kill, until somebody resumes it; `failed` waits to be resumed; all others are final."""

StageStatus = Literal["running", "failed", "done", "reset"]

UNFINISHED: tuple[RoundStatus, ...] = ("running", "failed")


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRun:
    """The last attempt of a stage. `result` is what it left in the ledger, `sha256` the hash of the files it left."""

    stage: str
    status: StageStatus
    attempt: int
    result: Mapping[str, Any]
    sha256: str
    error: str
    started: datetime
    ended: datetime | None

    @property
    def tries(self) -> int:
        """How many attempts there were since somebody last asked for the stage to be run again."""
        return self.attempt - int(self.result.get("since", 0))

    @property
    def seconds(self) -> float | None:
        """How long the attempt took; None where it has not ended."""
        return None if self.ended is None else (self.ended - self.started).total_seconds()


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """A round as the ledger has it.

    `fire_key` names what started it, None for a person. `parent` is the pair that was served when it was planned, `pair`
    the one that it promoted.
    """

    number: int
    fire_key: str | None
    status: RoundStatus
    config_hash: str
    parent: int
    pair: int | None
    reason: str
    created: datetime
    ended: datetime | None
    stages: tuple[StageRun, ...]

    @property
    def finished(self) -> bool:
        return self.status not in UNFINISHED

    def stage(self, name: str) -> StageRun | None:
        """The stage of this name, None where it was not begun."""
        return next((one for one in self.stages if one.stage == name), None)

    def result(self, name: str) -> Mapping[str, Any]:
        """What a stage left in the ledger; empty where it is not done."""
        found = self.stage(name)
        return found.result if found is not None and found.status == "done" else {}

    @property
    def gates(self) -> list[Mapping[str, Any]]:
        """What the gates decided, in their order."""
        return [gate for one in self.stages if one.status == "done" for gate in one.result.get("gates", ())]
