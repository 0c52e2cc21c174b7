"""Collecting on a disk that is really full: what was accepted is there in the end, once, and it goes on by itself."""

from __future__ import annotations

import errno
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
from collecting import Killed, Load, make_corrections
from small_disk import SmallDisk, small_disk

from aligner_chain.exchange import Correction
from bootstrap.collect import Collector, Counters
from bootstrap.collect.spill import Log, Segment, line_of
from bootstrap.errors import StoreError
from bootstrap.records import Record
from bootstrap.store import CorrectionStore

Make = Callable[..., Correction]

MB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", 24 * MB) as disk:
        yield disk


@pytest.fixture
def full_store(disk: SmallDisk) -> CorrectionStore:
    """A store on the disk, which has no room left."""
    store = CorrectionStore(disk.path / "corrections.db")
    disk.fill()
    return store


def ids_in(store: CorrectionStore) -> list[str]:
    return [correction.id for correction in store.corrections()]


def test_durable_mode_accepts_nothing_that_no_disk_has(
    disk: SmallDisk, full_store: CorrectionStore, make_correction: Make, caplog: pytest.LogCaptureFixture
) -> None:
    sent = [make_correction(f"question {number}") for number in range(51)]
    with Collector(full_store, durable=True, capacity=20) as collector:
        assert not any(map(collector.submit, sent[:50]))
        assert not collector.flush()
        before = collector.counters
        assert before == Counters(
            submitted=50, waiting=before.waiting, refused=50 - before.waiting, undurable=before.undurable
        )
        assert 0 < before.waiting <= min(20, before.undurable)
        assert not collector.flush()  # all of it is tried again, and counted only once
        assert collector.counters == before
        (told,) = (one for one in caplog.messages if one.startswith("The log in"))
        assert "No space left" in told
        assert "df -h" in told
        assert "spill=" in told
        disk.make_room()
        assert collector.submit(sent[50])
        assert collector.flush()
        assert collector.counters.written == before.waiting + 1
    found = ids_in(full_store)
    assert len(found) == before.waiting + 1
    assert sent[50].id in found


def test_by_default_memory_takes_what_it_can_and_the_rest_is_refused(
    disk: SmallDisk, full_store: CorrectionStore, make_correction: Make
) -> None:
    sent = [make_correction(f"question {number}") for number in range(50)]
    with Collector(full_store, capacity=20) as collector:
        accepted = [one.id for one in sent if collector.submit(one)]
        assert not collector.flush()
        assert collector.counters == Counters(submitted=50, waiting=20, refused=30)
        disk.make_room()
        assert collector.flush()
    assert ids_in(full_store) == accepted
    assert not (disk.path / "corrections.db-spill").exists()


def test_a_store_on_a_full_disk_says_so_and_changes_nothing(
    disk: SmallDisk, full_store: CorrectionStore, make_correction: Make
) -> None:
    disk.make_room()
    full_store.append(make_correction(f"question {number}", subject="ann") for number in range(20))
    disk.fill()
    writes: list[Callable[[], object]] = [
        lambda: full_store.append([make_correction("after")]),
        lambda: full_store.delete(subject="ann"),
        lambda: CorrectionStore(disk.path / "new.db"),
    ]
    for write in writes:
        with pytest.raises(StoreError, match=r"disk is full or failing\. Free some space"):
            write()
    disk.make_room()
    assert full_store.count() == 20
    assert full_store.delete(subject="ann") == 20


def fits_partly(disk: SmallDisk, line: bytes) -> None:
    """Leaves so little room that a line is cut off in the middle; tried with a file that goes again."""
    disk.fill(leave=2 * 4096)
    probe = disk.path / "probe"
    with probe.open("wb", buffering=0) as file:
        assert 0 < file.write(line) < len(line)
    probe.unlink()


@pytest.fixture
def lines(make_correction: Make) -> list[bytes]:
    """Three lines, the second of them ten pages long."""
    texts = ("short", "long " * 8000, "short again")
    return [line_of(Record(correction=make_correction(text, text=text))) for text in texts]


def texts_of(segment: Segment) -> list[str]:
    piece = segment.read(10)
    assert piece is not None
    assert not piece.torn
    return [record.correction.text for record in piece.records]


def test_a_line_that_fits_only_partly_is_taken_back(disk: SmallDisk, lines: list[bytes]) -> None:
    segment = Segment.create(disk.path / "spill")
    segment.append(lines[0])
    fits_partly(disk, lines[1])
    with pytest.raises(OSError, match="No space left") as caught:
        segment.append(lines[1])
    assert caught.value.errno == errno.ENOSPC
    segment.append(lines[2])
    assert texts_of(segment) == ["short", "short again"]
    segment.close()
    adopted = Segment.adopt(segment.path)
    assert adopted is not None
    assert texts_of(adopted) == ["short", "short again"]


def test_behind_a_line_that_cannot_be_taken_back_nothing_is_written(
    disk: SmallDisk, lines: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(descriptor: int, size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    log = Log(disk.path / "spill")
    log.append(lines[0])
    fits_partly(disk, lines[1])
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", fails)
        with pytest.raises(OSError, match="Input/output"):
            log.append(lines[1])
    disk.make_room()
    log.append(lines[2])
    found = []
    while piece := log.read(10):
        found += [record.correction.text for record in piece.records]
        log.stored(piece)
    assert found == ["short", "short again"]
    log.close()
    assert not log.folder.exists()


def test_a_kill_in_the_middle_of_a_line_takes_no_other_with_it(disk: SmallDisk, lines: list[bytes]) -> None:
    store = CorrectionStore(disk.path / "corrections.db")
    spill = disk.path / "corrections.db-spill"
    if not (child := os.fork()):
        try:
            segment = Segment.create(spill)
            segment.append(lines[0] + lines[2])
            disk.fill(leave=2 * 4096)
            os.write(segment._descriptor, lines[1])
        finally:
            os._exit(9)
    os.waitpid(child, 0)
    (file,) = spill.iterdir()
    assert file.stat().st_size > len(lines[0] + lines[2])
    with Collector(store) as collector:
        assert not collector.flush()
        disk.make_room()
        assert collector.flush()
        assert (collector.counters.adopted, collector.counters.torn) == (2, 1)
    assert [one.text for one in store.corrections()] == ["short", "short again"]


def test_a_log_whose_folder_somebody_removed_goes_on(store: CorrectionStore) -> None:
    made = list(islice(make_corrections(1), 3))
    with Collector(store, durable=True) as collector:
        for one in made:
            assert collector.submit(one)
            assert collector.flush()
            shutil.rmtree(store.path.with_name("corrections.db-spill"))
        assert collector.counters.written == 3
    assert ids_in(store) == sorted(one.id for one in made)


@pytest.mark.parametrize("durable", [False, True])
def test_what_was_accepted_is_found_after_a_kill_on_a_full_disk(tmp_path: Path, disk: SmallDisk, durable: bool) -> None:
    load, noise = Load(durable=durable, processes=2, capacity=100), random.Random(durable)
    path = disk.path / "corrections.db"
    CorrectionStore(path)
    killed = Killed(str(path), tmp_path, load, spill=disk.path / "spill")
    with killed.running() as pids:
        time.sleep(0.2)
        disk.fill()
        killed.wait_for_refusals()
        killed.kill(noise, pids)
    disk.make_room()
    killed.restart()
    missing = killed.missing()
    assert killed.refused
    assert killed.stored
    assert len(missing) == 2
    assert max(missing.values()) <= (0 if durable else load.capacity)
    again = killed.restart()
    assert (again.adopted, again.torn) == (0, 0)
