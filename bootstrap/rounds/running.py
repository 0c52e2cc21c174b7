"""Rounds as a whole: begun once, by one process at a time, resumed, given up."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bootstrap.database.fences import Fence
from bootstrap.database.leases import Leases
from bootstrap.errors import (
    NotEnoughPairsError,
    RegistryError,
    RoundBusyError,
    RoundChangedError,
    RoundError,
)
from bootstrap.files import write_synced
from bootstrap.registry import PairVersion, Registry
from bootstrap.rounds import examples
from bootstrap.rounds.artifacts import json_sha256, read_rows
from bootstrap.rounds.config import RoundConfig, fingerprint
from bootstrap.rounds.ledger import Ledger
from bootstrap.rounds.result import RoundResult
from bootstrap.rounds.stages import STAGE_NAMES, Runner, Watch
from bootstrap.rounds.values import Round
from bootstrap.rounds.work import Say, Work
from bootstrap.store import CorrectionStore

PLAN = "plan.json"


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
            parent, ledger = self._served(registry), Ledger(registry.database, fence)
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
        leases, patience, told = Leases(registry.database), time.monotonic() + 1.5 * self.lease_s, False
        while (lease := leases.take("round", ttl_s=self.lease_s)) is None:
            if not told:
                self.say("waiting for the lease of another process that works at a round, or was killed at one")
                told = True
            if time.monotonic() > patience:
                raise RoundBusyError(
                    "Another process works at a round, and one works at a time.\n"
                    "See how far it is:  aligner-bootstrap round status --config round.toml"
                )
            time.sleep(min(0.5, self.lease_s / 4))
        with lease.held():
            yield lease

    def _resume(self, registry: Registry, fence: Fence, found: Round) -> RoundResult:
        parts, parent = self._same_parts(registry, found), self._served(registry)
        promoted = parent.figures.get("round") == found.number
        if parent.number != found.parent and not promoted:
            raise RoundChangedError(
                f"Round {found.number} was to improve on pair {found.parent}, and pair {parent.number} is served by now.\n"
                f"Give it up and begin anew:  aligner-bootstrap round abort {found.number} --config round.toml"
            )
        self._refuse_deleted(registry, found)
        self.say(f"round {found.number} is resumed")
        return self._go(registry, fence, found, parent, parts)

    def _refuse_deleted(self, registry: Registry, found: Round) -> None:
        """Refuses to go on with what was deleted from the store since it was taken out of it, pairs and prompts alike."""
        frozen = found.stage("freeze")
        if frozen is None or frozen.status != "done":
            return
        ids = _root(registry, found.number) / f"{frozen.stage}-{frozen.attempt}" / "ids.jsonl"
        if not ids.exists():  # then the stage is not as it was left, which is found out before anything goes on from it
            return
        with closing(CorrectionStore(self.config.store)) as store:
            deleted = store.deleted(read_rows(ids))
        if deleted:
            raise RoundChangedError(
                f"{len(deleted)} of the corrections that round {found.number} was begun with were deleted since.\n"
                f"Give it up, which removes its copies, and begin anew:  aligner-bootstrap round abort {found.number} --config round.toml"
            )

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
            status, reason = Runner(ledger=ledger, work=work, watch=self.watch, stop=self.stop).run(planned)
        except NotEnoughPairsError as error:
            ledger.end(planned.number, "skipped", str(error).partition("\n")[0])
            _remove_ended(registry, ledger)
            raise
        except RoundError:
            # Somebody may have given the round up meanwhile: what was written since then goes too.
            _remove_ended(registry, ledger)
            raise
        examples.keep(work)
        ended = ledger.end(planned.number, status, reason, pair=work.results.get("promote", {}).get("pair"))
        _remove_ended(registry, ledger)
        return RoundResult.of(ended, registry.served(), time.monotonic() - started)

    def _served(self, registry: Registry) -> PairVersion:
        served = registry.served()
        if served is None:
            raise RegistryError(
                "No pair of an upstream and an Aligner is served, so there is nothing to improve on. Register a start "
                "pair with `aligner-bootstrap round run --start`, or see `aligner-bootstrap demo`."
            )
        if served.upstream is None and self.config.base_upstream is not None:
            raise RegistryError(
                f"Pair {served.number} is an Aligner for an upstream of a provider, so a candidate trained from "
                f"{self.config.base_upstream} has nothing to be compared with.\nTo improve the Aligner alone, leave "
                "base_upstream out. To serve an upstream of your own, promote it with an Aligner first."
            )
        return served

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
            f"aligner-bootstrap round abort {found.number} --config round.toml"
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


def _root(registry: Registry, number: int) -> Path:
    return registry.home / "rounds" / str(number)


def _remove_ended(registry: Registry, ledger: Ledger) -> None:
    """Removes what ended rounds left: texts of customers, who may want them deleted, and weights that nobody serves."""
    folder = registry.home / "rounds"
    if not folder.is_dir():
        return
    ended = {str(one.number) for one in ledger.rounds() if one.finished}
    for path in folder.iterdir():
        if path.name in ended:
            shutil.rmtree(path, ignore_errors=True)
