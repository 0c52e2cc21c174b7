"""Everything that happens to a collection, in any order, beside a simple model of what must be there then.

The machine submits through a `Collector` in a process of its own, which is killed or closed and followed by another. Feedback,
deletions and exports go to the store directly, as from the command line. Where the store is a file, the process reaches it
through a link that is taken away at times: then all that is submitted lies in the log.

Real clocks are used. Every step begins two milliseconds after the one before, so that it is certain what was first.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from collection_parts import (
    CORRECTIONS,
    NUMBERS,
    TENANTS,
    Process,
    correction_of,
    exported,
    feedback_of,
    is_of,
    line,
    names_of,
    target_of,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from bootstrap.errors import ExportError
from bootstrap.pairs import Filters
from bootstrap.pairs.exports import export
from bootstrap.pairs.filters import OPTIONAL, verdict
from bootstrap.pairs.manifests import check
from bootstrap.records import SPLITS, Feedback, Record, now_ms
from bootstrap.store import CorrectionStore

_EXACT = Filters(off=OPTIONAL)  # without the filters that estimate
numbers = st.integers(0, NUMBERS - 1)
tenants = st.sampled_from(TENANTS)
abouts = st.sampled_from(["correction", "message", "run"])
opinions = st.sampled_from([("thumb", True), ("thumb", False), ("review", False), ("score", 0.5), ("edit", "own")])


def run(url: str, folder: Path, *, examples: int, steps: int) -> None:
    """Plays so many games of at most so many steps with the store at a URL."""
    CorrectionStore(url).close()  # its tables are there
    run_state_machine_as_test(
        lambda: Collection(url, folder),
        settings=settings(max_examples=examples, stateful_step_count=steps, suppress_health_check=list(HealthCheck)),
    )


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A correction that is on its way to the store, and between which times it was collected.

    `where`: in the log; in the memory of the process; or it was there when that was killed, and may be lost.
    """

    id: str
    from_ms: int
    to_ms: int
    where: Literal["log", "memory", "killed"]


class Collection(RuleBasedStateMachine):
    """`held` is what the store holds, `pending` what is on its way; the rest is what was deleted and said."""

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=folder))
        self.url, self.store = url, CorrectionStore(url)
        self.link = self.folder / "link"
        self.process: Process | None = None

    @initialize(durable=st.booleans())
    def begin(self, durable: bool) -> None:
        self._empty()
        self.durable = durable
        self.spill = self.folder / "spill"
        self.away = False
        self._link()
        self.times: list[int] = []
        self.held: dict[str, int] = {}  # when each was collected
        self.pending: list[Copy] = []
        self.torn = 0  # lines that were cut off, and nobody has counted yet
        self.said: dict[str, Feedback] = {}
        self.graves: dict[str, set[str]] = {"correction": set(), "message": set(), "run": set()}
        self.subjects: dict[tuple[str | None, str | None], int] = {}  # until when each was deleted
        self.exports: list[Path] = []
        self.names = itertools.count()

    def _empty(self) -> None:
        with self.store.database.write() as connection:
            for table in ("corrections", "feedback", "tombstones"):
                connection.exec_driver_sql(f"DELETE FROM {table}")

    # --- collecting -------------------------------------------------------------------------------------------------

    @rule(batch=st.lists(numbers, min_size=1, max_size=6), flush=st.booleans())
    def submit(self, batch: list[int], flush: bool) -> None:
        from_ms, process = self._tick(), self._running()
        assert process.ask("submit", batch)
        to_ms, where = now_ms(), "log" if self.durable else "memory"
        self.pending += [
            Copy(id=correction_of(number).id, from_ms=from_ms, to_ms=to_ms, where=where) for number in batch
        ]
        if flush:
            self._settle()

    @rule()
    def replay(self) -> None:
        """A process starts, if there is none, and takes over what others left."""
        self._tick()
        self._running()
        self._settle()

    @precondition(lambda self: self.process is not None)
    @rule(torn=st.booleans())
    def crash(self, torn: bool) -> None:
        """Killed, perhaps in the middle of a line. What is in the store now stays, the rest of memory is lost."""
        assert self.process is not None
        self._tick()
        self.process.kill()
        self.process = None
        self._move("memory", "killed")
        if torn:
            self._tear()

    def _tear(self) -> None:
        """Leaves part of a line at the end of a log."""
        self.spill.mkdir(exist_ok=True)
        file = min(self.spill.glob("*.jsonl"), default=self.spill / "0-torn.jsonl")
        before = file.read_bytes() if file.exists() else b""
        if before[-1:] in (b"", b"\n"):
            file.write_bytes(before + line(0, now_ms())[:-20])
            self.torn += 1

    @precondition(lambda self: self.process is not None)
    @rule()
    def close(self) -> None:
        assert self.process is not None
        self._tick()
        self._check_flushed(*self.process.ask("close"))
        self.process.kill()
        self.process = None

    @precondition(lambda self: self.store.path is not None)
    @rule()
    def go_and_come(self) -> None:
        """The store goes away for whoever collects, or is back."""
        self._tick()
        if self.away:
            self._link()
        else:
            self._settle()
            self.link.unlink()
        self.away = not self.away

    @precondition(lambda self: self.times)
    @rule(batch=st.lists(numbers, min_size=1, max_size=3), data=st.data())
    def find_old_lines(self, batch: list[int], data: st.DataObject) -> None:
        """A log from some time ago turns up, as out of a backup."""
        at_ms = data.draw(st.sampled_from(self.times))
        self._tick()
        lines = b"".join(line(number, at_ms) for number in batch)
        self.spill.mkdir(exist_ok=True)  # who finds it empty at the end removes it
        (self.spill / f"1-old-{next(self.names)}.jsonl").write_bytes(lines)
        self.pending += [Copy(id=correction_of(number).id, from_ms=at_ms, to_ms=at_ms, where="log") for number in batch]

    # --- feedback ---------------------------------------------------------------------------------------------------

    @rule(batch=st.lists(st.tuples(abouts, numbers, opinions, st.integers(0, 30)), min_size=1, max_size=6))
    def say(self, batch: list[tuple[str, int, tuple[Any, Any], int]]) -> None:
        """Also of what has not arrived, of what was deleted, and the same again."""
        at_ms = self._tick()
        said = [feedback_of(*one, at_ms=at_ms) for one in batch]
        new: dict[str, Feedback] = {}
        for one in said:
            if not self._is_buried(one) and one.id not in self.said:
                new.setdefault(one.id, one)
        assert self.store.add_feedback(said) == len(new)
        self.said |= new

    # --- deleting ---------------------------------------------------------------------------------------------------

    @rule(batch=st.sets(numbers, min_size=1, max_size=3))
    def delete_ids(self, batch: set[int]) -> None:
        self._tick()
        self._settle()
        ids = {correction_of(number).id for number in batch}
        assert self.store.delete(ids=ids) == len(ids & self.held.keys())
        self.graves["correction"] |= ids
        self._forget(ids)

    @rule(subject=st.sampled_from(["ann", "bob"]), tenant=tenants, data=st.data())
    def delete_subject(self, subject: str, tenant: str | None, data: st.DataObject) -> None:
        before_ms = data.draw(st.sampled_from([None, *self.times]))
        self._tick()
        self._settle()
        ids = {
            one
            for one, at_ms in self.held.items()
            if (before_ms is None or at_ms < before_ms) and is_of(CORRECTIONS[one].exchange, subject, tenant)
        }
        assert self.store.delete(subject=subject, tenant=tenant, before_ms=before_ms) == len(ids)
        until = now_ms() if before_ms is None else before_ms - 1
        self.subjects[tenant, subject] = max(until, self.subjects.get((tenant, subject), -1))
        self._forget(ids)

    @precondition(lambda self: self.times)
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        """Retention: what is older than some time goes, also feedback that is about nothing."""
        before_ms = data.draw(st.sampled_from(self.times))
        self._tick()
        self._settle()
        ids = {one for one, at_ms in self.held.items() if at_ms < before_ms}
        assert self.store.delete(before_ms=before_ms) == len(ids)
        self._forget(ids)
        owned = {key for one in self.held for key in names_of(one)}
        self.said = {name: one for name, one in self.said.items() if one.at_ms >= before_ms or target_of(one) in owned}

    def _forget(self, ids: Iterable[str]) -> None:
        for one in ids:
            if self.held.pop(one, None) is not None:
                for kind, key in names_of(one):
                    self.graves[kind].add(key)
        self.said = {name: one for name, one in self.said.items() if not self._is_buried(one)}

    def _is_buried(self, feedback: Feedback) -> bool:
        kind, key = target_of(feedback)
        return key in self.graves[kind]

    # --- exports ----------------------------------------------------------------------------------------------------

    @rule()
    def export_all(self) -> None:
        """The rows of each split are those of the model: nothing deleted, and nothing held out among the training rows."""
        self._tick()
        self._settle()
        for split in SPLITS:
            out = self.folder / f"export-{next(self.names)}"
            wanted = self._rows(split)
            with contextlib.nullcontext() if wanted else pytest.raises(ExportError, match="No row is left"):
                export(self.store, out, split=split, filters=_EXACT)
                assert exported(out) == wanted
                self.exports.append(out)

    def _rows(self, split: str) -> dict[str, tuple[str, str]]:
        """What an export of a split must hold: by the id, the rejected and the chosen text."""
        prompts = defaultdict(set)
        for one in self.held:
            record = Record(correction=CORRECTIONS[one])
            prompts[record.prompt].add(record.split)
        rows = {}
        for one in self.held:
            record = Record(correction=CORRECTIONS[one])
            apart = split != "train" or prompts[record.prompt] == {"train"}
            best = self._best(one)
            if record.split == split and apart and best not in (None, record.correction.exchange.answer):
                rows[one] = record.correction.exchange.answer, str(best)
        return rows

    def _best(self, one: str) -> object:
        """The best answer known: a person's last word, before a thumb, before the Aligner. None: it is known as bad."""
        said, text = self._feedback_of(one), CORRECTIONS[one].text
        for kinds in (("edit", "review"), ("thumb",)):
            last = next((feedback for feedback in reversed(said) if feedback.kind in kinds), None)
            if last is not None:
                return last.value if last.kind == "edit" else text if last.value else None
        return text

    def _feedback_of(self, one: str) -> list[Feedback]:
        mine = [feedback for feedback in self.said.values() if target_of(feedback) in names_of(one)]
        return sorted(mine, key=lambda feedback: (feedback.at_ms, feedback.id))

    # --- what always holds ------------------------------------------------------------------------------------------

    @invariant()
    def the_store_holds_what_it_should(self) -> None:
        records = list(self.store.records(feedback=True))
        found = {record.correction.id: record for record in records}
        assert len(found) == len(records)
        self._arrive({one: record.at_ms for one, record in found.items()})
        assert found.keys() == self.held.keys()
        for one, record in found.items():
            assert replace(record, feedback=()) == Record(correction=CORRECTIONS[one], at_ms=self.held[one])
            assert list(record.feedback) == self._feedback_of(one)
            said = verdict(record)
            assert (None if said.obstacle else said.text) == self._best(one)
        assert self.store.feedback_count() == len(self.said)
        assert self.store.deleted(CORRECTIONS) == self.graves["correction"]

    @invariant()
    def exports_tell_which_rows_were_deleted(self) -> None:
        for out in self.exports[-2:]:
            found = check(out, self.store)
            assert not found.altered
            assert list(found.deleted) == [one for one in exported(out) if one in self.graves["correction"]]

    def teardown(self) -> None:
        if self.process is not None:
            self.process.kill()
        self.store.close()
        shutil.rmtree(self.folder)

    # --- the process and what it has on its way ---------------------------------------------------------------------

    def _tick(self) -> int:
        time.sleep(0.002)
        self.times.append(now_ms())
        return self.times[-1]

    def _link(self) -> None:
        if self.store.path is not None:
            self.link.symlink_to(self.store.path.parent)

    def _running(self) -> Process:
        if self.process is None:
            path = self.store.path
            url = self.url if path is None else str(self.link / path.name)
            if self.away:
                self._link()
            self.process = Process(url, self.spill, durable=self.durable)
            if self.away:
                self.link.unlink()
            self.process.ask("begin")
        return self.process

    def _settle(self) -> None:
        """Has all that can be written; where nobody collects, what is in the log stays there."""
        if self.process is not None:
            complete, counters = self.process.ask("flush")
            assert not (complete and self.away and any(copy.where == "log" for copy in self.pending))
            self._check_flushed(complete, counters)

    def _check_flushed(self, complete: bool, counters: dict[str, int]) -> None:
        assert complete or self.away
        settled = sum(counters[name] for name in ("written", "refused", "failed", "sampled_out", "waiting"))
        assert counters["submitted"] == settled, counters
        assert not counters["refused"] + counters["failed"] + counters["undurable"]
        self._move("memory", "log")
        if not self.away:
            assert not counters["waiting"]
            self._all_arrived(counters["torn"])

    def _move(self, before: str, after: Literal["log", "killed"]) -> None:
        self.pending = [replace(one, where=after) if one.where == before else one for one in self.pending]

    def _all_arrived(self, torn: int) -> None:
        assert self.process is not None
        assert torn - self.process.torn >= self.torn
        self.process.torn, self.torn = torn, 0
        self._arrive({record.correction.id: record.at_ms for record in self.store.records()})
        sure = {copy.id for copy in self.pending if copy.where == "log" and self._is_alive(copy)}
        assert sure <= self.held.keys()
        self.pending = []
        assert not any(file.stat().st_size for file in self.spill.glob("*"))

    def _arrive(self, found: dict[str, int]) -> None:
        """What the store holds now and did not before was on its way, and not deleted."""
        for one in found.keys() - self.held.keys():
            copies = [copy for copy in self.pending if copy.id == one and self._is_alive(copy)]
            assert any(copy.from_ms <= found[one] <= copy.to_ms for copy in copies), one
            self.held[one] = found[one]

    def _is_alive(self, copy: Copy) -> bool:
        exchange = CORRECTIONS[copy.id].exchange
        until = [self.subjects.get((tenant, exchange.subject), -1) for tenant in (None, exchange.tenant)]
        return copy.id not in self.graves["correction"] and max(until) < copy.from_ms
