"""The stages of a round, and how each is done once, whatever is killed in between.

A stage writes into a folder of its own with a temporary name. When it is complete and on the disk it gets its name in one
step, and then its row in the ledger says that it is done. Whoever resumes goes by that: a stage with a row is not run
again, a folder with a name but without a row is taken over, all else is begun anew.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from bootstrap.errors import (
    LeaseLostError,
    NotEnoughPairsError,
    RoundChangedError,
    RoundStoppedError,
    StageError,
    TriesSpentError,
    told,
)
from bootstrap.files import sync, sync_tree, tree_sha256
from bootstrap.rounds import aligner_stages, upstream_stages
from bootstrap.rounds.ledger import Ledger
from bootstrap.rounds.values import Round, RoundStatus, StageRun
from bootstrap.rounds.work import Work

RESULT = "result.json"

Moment = Literal["begun", "written", "synced", "renamed", "committed"]
Watch = Callable[[str, Moment], None]
"""Is told the stage and how far it is: `begun`, `written` (nothing is on the disk for sure), `synced`, `renamed`, `committed`."""


@dataclass(frozen=True)
class Stage:
    """A step of a round: a pure function of the settings and of what the stages before it left.

    `run` writes files into the folder that it is given and returns what the ledger keeps. A result with `ends`, a status and
    a reason, ends the round; one with `skipped`, a reason, says that there was nothing to do.
    """

    name: str
    run: Callable[[Work, Path], Mapping[str, Any]]


STAGES = (
    Stage("freeze", upstream_stages.freeze),
    Stage("train_upstream", upstream_stages.train),
    Stage("evaluate_upstream", upstream_stages.evaluate),
    Stage("gate_upstream", upstream_stages.gate),
    Stage("regenerate", aligner_stages.regenerate),
    Stage("correct", aligner_stages.correct),
    Stage("verify", aligner_stages.verify),
    Stage("annotate", aligner_stages.annotate),
    Stage("triples", aligner_stages.build_triples),
    Stage("train_aligner", aligner_stages.train),
    Stage("calibrate", aligner_stages.calibrate),
    Stage("evaluate_pair", aligner_stages.evaluate),
    Stage("gate_pair", aligner_stages.gate),
    Stage("promote", aligner_stages.promote),
)
STAGE_NAMES = tuple(stage.name for stage in STAGES)


@dataclass(frozen=True, kw_only=True)
class Runner:
    """Runs the stages of one round.

    Args:
        ledger: of the registry, under the lease of whoever runs.
        work: the round.
        watch: is told how far each stage is.
        stop: once it is set, the round stops after the stage that runs.
    """

    ledger: Ledger
    work: Work
    watch: Watch
    stop: threading.Event | None

    def run(self, planned: Round) -> tuple[RoundStatus, str]:
        for stage in STAGES:
            if self.stop is not None and self.stop.is_set():
                raise RoundStoppedError(f"Round {self.work.number} was stopped before {stage.name}; it can be resumed.")
            before = planned.stage(stage.name)
            if before is not None and before.status == "done":
                _check_left(self.work, before)
                self.work.results[stage.name], self.work.folders[stage.name] = before.result, _left(self.work, before)
            else:
                self._attempt(stage, before)
            if ends := self.work.results[stage.name].get("ends"):
                also = f"; {self.work.refused}" if self.work.refused else ""
                return ends[0], f"{ends[1]}{also}{_kept_as_challenger(self.work) if ends[0] == 'held' else ''}"
        return "promoted", _promoted_what(self.work)

    def _attempt(self, stage: Stage, before: StageRun | None) -> None:
        if before is not None and before.status == "running" and _left(self.work, before).is_dir():
            self.work.say(f"{stage.name} was done when the round was killed")
            return self._commit(stage, _left(self.work, before))
        if before is not None and before.tries >= self.work.config.tries:
            raise TriesSpentError(
                f"Round {self.work.number} stopped at {stage.name}, which was begun {before.tries} times"
                f"{f' and last said: {before.error}' if before.error else ' and never came to its end'}.\n"
                "When the reason is mended:  aligner-bootstrap round retry --config round.toml --stage " + stage.name
            )
        attempt = self.ledger.begin(self.work.number, stage.name)
        self.watch(stage.name, "begun")
        for old in self.work.root.glob(f"{stage.name}-*"):
            shutil.rmtree(old)
        try:
            folder = self._run(stage, attempt)
        except (NotEnoughPairsError, LeaseLostError):
            raise
        except Exception as error:  # noqa: BLE001 - judges and annotators are the user's: whatever stops one fails the stage
            _fail(self.ledger, self.work, stage, error)
        return self._commit(stage, folder)

    def _run(self, stage: Stage, attempt: int) -> Path:
        folder = self.work.root / f"{stage.name}-{attempt}"
        unfinished = self.work.root / f"{folder.name}.tmp"
        unfinished.mkdir()
        result = stage.run(self.work, unfinished)
        (unfinished / RESULT).write_text(json.dumps(result), encoding="utf-8")
        self.watch(stage.name, "written")
        sync_tree(unfinished)
        self.watch(stage.name, "synced")
        unfinished.rename(folder)
        sync(self.work.root)
        self.watch(stage.name, "renamed")
        return folder

    def _commit(self, stage: Stage, folder: Path) -> None:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        self.ledger.finish(self.work.number, stage.name, result, tree_sha256(folder))
        self.work.results[stage.name], self.work.folders[stage.name] = result, folder
        shutil.rmtree(self.work.scratch(stage.name), ignore_errors=True)
        self.watch(stage.name, "committed")


def _left(work: Work, run: StageRun) -> Path:
    return work.root / f"{run.stage}-{run.attempt}"


def _check_left(work: Work, run: StageRun) -> None:
    folder = _left(work, run)
    if not folder.is_dir() or tree_sha256(folder) != run.sha256:
        raise RoundChangedError(
            f"What {run.stage} left in {folder} was changed or is gone, so round {work.number} cannot go on from there.\n"
            f"Run it again:  aligner-bootstrap round retry --config round.toml --stage {run.stage}"
        )


def _promoted_what(work: Work) -> str:
    if work.refused:
        return f"the Aligner alone, {work.refused}"
    return f"the upstream alone, {work.aligner_refused}" if work.aligner_refused else "every gate was passed"


def _kept_as_challenger(work: Work) -> str:
    """Keeps a pair on which the gates could not decide, for a person to; says how."""
    if "evaluate_pair" not in work.folders:
        return ""
    number = aligner_stages.register(work).number
    return f".\nIt is kept as pair {number}; to serve it all the same:  aligner-bootstrap promote {number}"


def _fail(ledger: Ledger, work: Work, stage: Stage, error: Exception) -> NoReturn:
    ledger.fail(work.number, stage.name, f"{type(error).__name__}: {error}")
    raise StageError(
        f"Round {work.number} stopped at {stage.name}: {told(error)}\nPair {work.parent.number} is still served. When the reason is "
        "mended:  aligner-bootstrap round resume --config round.toml"
    ) from error
