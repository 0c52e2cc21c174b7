"""Running a round: stage after stage, each done once, whatever is killed in between.

A stage writes into a folder of its own with a temporary name. When it is complete and on the disk it gets its name in one
step, and then its row in the ledger says that it is done. Whoever resumes goes by that: a stage with a row is not run
again, a folder with a name but without a row is taken over, all else is begun anew.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from bootstrap.database.fences import Fence
from bootstrap.database.leases import Leases
from bootstrap.errors import (
    LeaseLostError,
    NotEnoughPairsError,
    RegistryError,
    RoundBusyError,
    RoundChangedError,
    RoundError,
    RoundStoppedError,
    StageError,
    TriesSpentError,
)
from bootstrap.files import sync, sync_tree, write_synced
from bootstrap.registry import PairVersion, Registry
from bootstrap.rounds import aligner_stages, examples, upstream_stages
from bootstrap.rounds.artifacts import json_sha256, tree_sha256
from bootstrap.rounds.config import RoundConfig, fingerprint
from bootstrap.rounds.ledger import Ledger
from bootstrap.rounds.result import RoundResult
from bootstrap.rounds.values import Round, RoundStatus, StageRun
from bootstrap.rounds.work import Say, Work

RESULT, PLAN = "result.json", "plan.json"

Moment = Literal["begun", "written", "synced", "renamed", "committed"]
Watch = Callable[[str, Moment], None]
"""Is told the stage and how far it is: `begun`, `written` (nothing is on the disk for sure), `synced`, `renamed`, `committed`."""


@dataclass(frozen=True)
class Stage:
    """A step of a round: a pure function of the settings and of what the stages before it left.

    `run` writes files into the folder that it is given and returns what the ledger keeps. A result with `ends`, a status and
    a reason, ends the round.
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


def _silent(*told: object) -> None:
    """Tells nobody."""


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """The rounds of one configuration: run, resume, abort, retry.

    Whoever works at one has the lease `round` of the registry's database and renews it; a killed process loses it after
    `lease_s`. So one process works at a round, and one that lost its lease writes nothing any more.

    Args:
        config: what the rounds are made of.
        say: is told each step in a line.
        progress: shows training progress on the terminal.
        watch: is told how far each stage is.
        stop: once it is set, the round stops after the stage that runs, to be resumed.
        lease_s: after so many seconds without a sign of life another process may take over.
    """

    config: RoundConfig
    say: Say = _silent
    progress: bool = False
    watch: Watch = _silent
    stop: threading.Event | None = None
    lease_s: float = 60.0

    def run(self, *, fire_key: str | None = None) -> RoundResult | None:
        """Runs a new round and promotes the new pair if it passes its gates.

        Args:
            fire_key: names what started the round; None is returned where a round was started by it before.

        Raises:
            NotEnoughPairsError: too little was collected; the round is over.
            RegistryError: no pair is served yet.
            RoundBusyError: another round is not ended, or another process works at one.
            RoundStoppedError: `stop` was set.
            StageError: a stage failed; its error is the cause. The pair that was served still is, and `resume` goes on.
        """
        registry, parts = self.open_registry(), fingerprint(self.config)
        with self._alone(registry) as fence:
            parent, ledger = _served(registry), Ledger(registry.database, fence)
            _remove_ended(registry, ledger)
            planned = ledger.plan(config_hash=json_sha256(parts), parent=parent.number, fire_key=fire_key)
            return None if planned is None else self._go(registry, fence, planned, parent, parts)

    def resume(self) -> RoundResult | None:
        """Goes on with the round that is not ended; None where there is none.

        Raises:
            RoundChangedError: settings, base models, judges or packages are not those that it was begun with.
            StageError: a stage failed, or was begun as often as it may be.
        """
        registry = self.open_registry()
        with self._alone(registry) as fence:
            found = Ledger(registry.database).unfinished()
            return None if found is None else self._resume(registry, fence, found)

    def retry(self, stage: str) -> RoundResult | None:
        """Goes on with the round that is not ended, from this stage on, as if it and those after it had not been begun.

        Raises:
            RoundError: there is no such stage.
        """
        if stage not in STAGE_NAMES:
            raise RoundError(f"{stage!r} is no stage of a round. The stages are {', '.join(STAGE_NAMES)}.")
        registry, names = self.open_registry(), STAGE_NAMES[STAGE_NAMES.index(stage) :]
        with self._alone(registry) as fence:
            ledger = Ledger(registry.database, fence)
            found = ledger.unfinished()
            if found is None:
                return None
            ledger.reset(found.number, names)
            for name in names:
                shutil.rmtree(_root(registry, found.number) / f"{name}.work", ignore_errors=True)
            return self._resume(registry, fence, ledger.round(found.number))

    def open_registry(self) -> Registry:
        """The registry that the rounds are made for."""
        return Registry(self.config.home, self.config.registry)

    @contextmanager
    def _alone(self, registry: Registry) -> Iterator[Fence]:
        """The lease without which nobody works at a round; waits as long as a killed process may have had it."""
        leases, patience = Leases(registry.database), time.monotonic() + 1.5 * self.lease_s
        while (lease := leases.take("round", ttl_s=self.lease_s)) is None:
            if time.monotonic() > patience:
                raise RoundBusyError(
                    "Another process works at a round, and one works at a time.\n"
                    "See how far it is:  aligner-bootstrap round status"
                )
            time.sleep(min(0.5, self.lease_s / 4))
        with lease.held():
            yield lease

    def _resume(self, registry: Registry, fence: Fence, found: Round) -> RoundResult:
        parts, parent = self._same_parts(registry, found), _served(registry)
        promoted = parent.figures.get("round") == found.number
        if parent.number != found.parent and not promoted:
            raise RoundChangedError(
                f"Round {found.number} was to improve on pair {found.parent}, and pair {parent.number} is served by now.\n"
                f"Give it up and begin anew:  aligner-bootstrap round abort {found.number}"
            )
        self.say(f"round {found.number} is resumed")
        return self._go(registry, fence, found, parent, parts)

    def _go(
        self, registry: Registry, fence: Fence, planned: Round, parent: PairVersion, parts: Mapping[str, str]
    ) -> RoundResult:
        ledger, root, started = Ledger(registry.database, fence), _root(registry, planned.number), time.monotonic()
        root.mkdir(parents=True, exist_ok=True)
        write_synced(root / PLAN, json.dumps(parts, indent=1))
        work = Work(
            number=planned.number,
            config=self.config,
            registry=registry,
            parent=parent,
            root=root,
            fence=fence,
            results={},
            folders={},
            say=self.say,
            progress=self.progress,
        )
        try:
            status, reason = self._stages(ledger, work, planned)
        except NotEnoughPairsError as error:
            ledger.end(planned.number, "skipped", str(error).partition("\n")[0])
            _remove_ended(registry, ledger)
            raise
        examples.keep(work)
        ended = ledger.end(planned.number, status, reason, pair=work.results.get("promote", {}).get("pair"))
        _remove_ended(registry, ledger)
        return RoundResult.of(ended, registry.served(), time.monotonic() - started)

    def _stages(self, ledger: Ledger, work: Work, planned: Round) -> tuple[RoundStatus, str]:
        for stage in STAGES:
            if self.stop is not None and self.stop.is_set():
                raise RoundStoppedError(f"Round {work.number} was stopped before {stage.name}; it can be resumed.")
            before = planned.stage(stage.name)
            if before is not None and before.status == "done":
                _check_left(work, before)
                work.results[stage.name], work.folders[stage.name] = before.result, _left(work, before)
            else:
                self._attempt(ledger, work, stage, before)
            if ends := work.results[stage.name].get("ends"):
                return ends[0], f"{ends[1]}{_kept_as_challenger(work) if ends[0] == 'held' else ''}"
        return "promoted", "every gate was passed"

    def _attempt(self, ledger: Ledger, work: Work, stage: Stage, before: StageRun | None) -> None:
        if before is not None and before.status == "running" and _left(work, before).is_dir():
            self.say(f"{stage.name} was done when the round was killed")
            return self._commit(ledger, work, stage, _left(work, before))
        if before is not None and before.tries >= self.config.tries:
            raise TriesSpentError(
                f"Round {work.number} stopped at {stage.name}, which was begun {before.tries} times"
                f"{f' and last said: {before.error}' if before.error else ' and never came to its end'}.\n"
                "When the reason is mended:  aligner-bootstrap round retry --config round.toml --stage " + stage.name
            )
        attempt = ledger.begin(work.number, stage.name)
        self.watch(stage.name, "begun")
        for old in work.root.glob(f"{stage.name}-*"):
            shutil.rmtree(old)
        try:
            folder = self._run(work, stage, attempt)
        except (NotEnoughPairsError, LeaseLostError):
            raise
        except Exception as error:  # noqa: BLE001 - judges and annotators are the user's: whatever stops one fails the stage
            _fail(ledger, work, stage, error)
        return self._commit(ledger, work, stage, folder)

    def _run(self, work: Work, stage: Stage, attempt: int) -> Path:
        folder = work.root / f"{stage.name}-{attempt}"
        unfinished = work.root / f"{folder.name}.tmp"
        unfinished.mkdir()
        result = stage.run(work, unfinished)
        (unfinished / RESULT).write_text(json.dumps(result), encoding="utf-8")
        self.watch(stage.name, "written")
        sync_tree(unfinished)
        self.watch(stage.name, "synced")
        unfinished.rename(folder)
        sync(work.root)
        self.watch(stage.name, "renamed")
        return folder

    def _commit(self, ledger: Ledger, work: Work, stage: Stage, folder: Path) -> None:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        ledger.finish(work.number, stage.name, result, tree_sha256(folder))
        work.results[stage.name], work.folders[stage.name] = result, folder
        shutil.rmtree(work.scratch(stage.name), ignore_errors=True)
        self.watch(stage.name, "committed")

    def _same_parts(self, registry: Registry, found: Round) -> Mapping[str, str]:
        """What the round was begun with, which must be what is there now."""
        parts = fingerprint(self.config)
        if json_sha256(parts) == found.config_hash:
            return parts
        plan = _root(registry, found.number) / PLAN
        begun = json.loads(plan.read_text(encoding="utf-8")) if plan.exists() else {}
        changed = sorted(name for name in parts.keys() | begun.keys() if parts.get(name) != begun.get(name))
        raise RoundChangedError(
            f"Round {found.number} was begun with something else than now: {', '.join(changed)}.\n"
            "Put it back as it was and resume, or give the round up and begin anew:  "
            f"aligner-bootstrap round abort {found.number}"
        )


def abort(registry: Registry, number: int, reason: str) -> Round:
    """Gives a round up that is not ended, and removes what it left.

    A process that works at it finds out when it writes to the ledger next.

    Raises:
        RoundError: there is no such round, or it has ended.
    """
    ledger = Ledger(registry.database)
    ended = ledger.end(number, "aborted", reason)
    _remove_ended(registry, ledger)
    return ended


def _fail(ledger: Ledger, work: Work, stage: Stage, error: Exception) -> NoReturn:
    ledger.fail(work.number, stage.name, f"{type(error).__name__}: {error}")
    raise StageError(
        f"Round {work.number} stopped at {stage.name}: {error}\nPair {work.parent.number} is still served. When the reason is "
        "mended:  aligner-bootstrap round resume --config round.toml"
    ) from error


def _kept_as_challenger(work: Work) -> str:
    """Keeps a pair on which the gates could not decide, for a person to; says how."""
    if "evaluate_pair" not in work.folders:
        return ""
    number = aligner_stages.register(work).number
    return f". It is kept as pair {number}; to serve it all the same:  aligner-bootstrap promote {number}"


def _served(registry: Registry) -> PairVersion:
    served = registry.served()
    if served is None or served.upstream is None:
        raise RegistryError(
            "No pair of an upstream and an Aligner is served, so there is nothing to improve on. Register a start "
            "pair with `aligner-bootstrap round run --start`, or see `aligner-bootstrap demo`."
        )
    return served


def _root(registry: Registry, number: int) -> Path:
    return registry.home / "rounds" / str(number)


def _left(work: Work, run: StageRun) -> Path:
    return work.root / f"{run.stage}-{run.attempt}"


def _check_left(work: Work, run: StageRun) -> None:
    folder = _left(work, run)
    if not folder.is_dir() or tree_sha256(folder) != run.sha256:
        raise RoundChangedError(
            f"What {run.stage} left in {folder} was changed or is gone, so round {work.number} cannot go on from there.\n"
            f"Run it again:  aligner-bootstrap round retry --config round.toml --stage {run.stage}"
        )


def _remove_ended(registry: Registry, ledger: Ledger) -> None:
    """Removes what ended rounds left: texts of customers, who may want them deleted, and weights that nobody serves."""
    folder = registry.home / "rounds"
    if not folder.is_dir():
        return
    ended = {str(one.number) for one in ledger.rounds() if one.finished}
    for path in folder.iterdir():
        if path.name in ended:
            shutil.rmtree(path, ignore_errors=True)
