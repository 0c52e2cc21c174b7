from __future__ import annotations

import gc
import json
import logging
import random
import signal
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from collecting import Killed, Load, SqliteFolder

from aligner_chain.exchange import Correction, Exchange
from bootstrap.collect import Collector, Counters
from bootstrap.collect.delivery import Delivery, OnceLog
from bootstrap.collect.spill import line_of
from bootstrap.collect.writer import BATCH
from bootstrap.records import Record, record_of
from bootstrap.store import CorrectionStore


@contextmanager
def locked(store: CorrectionStore):
    """Holds the writer's lock of the store's file, as another process would."""
    with closing(sqlite3.connect(store.path, isolation_level=None)) as elsewhere:
        elsewhere.execute("BEGIN IMMEDIATE")
        yield
        elsewhere.execute("ROLLBACK")


def test_what_is_submitted_is_written(store, make_correction):
    batch = [make_correction(f"question {number}") for number in range(3 * BATCH)]
    with Collector(store) as collector:
        for correction in batch:
            collector.submit(correction)
        assert collector.flush()
        assert list(store.corrections()) == batch
        assert collector.counters == Counters(submitted=len(batch), written=len(batch))


def test_a_correction_known_already_counts_as_written(store, make_correction):
    correction = make_correction()
    with Collector(store) as collector:
        collector.submit(correction)
        collector.submit(correction)
        collector.flush()
        assert collector.counters == Counters(submitted=2, written=2)
    assert store.count() == 1


def test_threads_submit_together(store, make_correction):
    batches = [[make_correction(f"{thread} {number}") for number in range(50)] for thread in range(8)]
    with Collector(store) as collector:
        threads = [threading.Thread(target=list, args=(map(collector.submit, batch),)) for batch in batches]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        collector.flush()
        assert collector.counters == Counters(submitted=400, written=400)
    assert store.count() == 400


def test_submit_does_not_wait_for_a_store_that_is_busy(store, make_correction):
    with Collector(store) as collector:
        with locked(store):
            for number in range(1000):
                collector.submit(make_correction(f"question {number}"))
            assert collector.counters == Counters(
                submitted=1000, waiting=1000
            )  # all taken while nothing could be written
            assert collector.flush(timeout=0.01) is False
        assert collector.flush() is True
        assert collector.counters.written == 1000


def test_a_full_memory_goes_to_the_log(store, make_correction):
    with Collector(store, capacity=50) as collector:
        with locked(store):
            for number in range(500):
                while not collector.submit(make_correction(f"question {number}")):
                    time.sleep(0.001)  # the log is slower than this loop
            assert collector._writer.memory.held <= 50
            assert collector.counters.spilled >= 500 - 50
        assert collector.flush()
        balanced(collector, written=500, waiting=0)
    assert store.count() == 500
    assert not list(spill_of(store).glob("*"))


def test_a_full_memory_without_a_log_refuses_and_says_so_once(store, make_correction, caplog, tmp_path):
    with Collector(store, capacity=5, spill=tmp_path / "a file's" / "folder") as collector:
        with locked(store):
            taken = [collector.submit(make_correction(f"question {number}")) for number in range(100)]
            assert collector._writer.memory.held <= 5
        assert collector.flush()
        assert store.count() == sum(taken)
        balanced(collector, written=sum(taken), refused=100 - sum(taken), spilled=0)
    assert sum("5 wait already; Collector(store, capacity=...)" in record.message for record in caplog.records) == 1


def test_a_closed_collector_has_written_everything_and_refuses(store, make_correction):
    collector = Collector(store)
    for number in range(10):
        collector.submit(make_correction(f"question {number}"))
    assert collector.close()
    assert store.count() == 10
    collector.submit(make_correction())
    assert collector.close()
    assert collector.flush()
    assert collector.counters == Counters(submitted=11, written=10, refused=1)


def test_without_anything_submitted_there_is_no_thread(store):
    before = threading.active_count()
    collector = Collector(store)
    assert collector.flush()
    assert threading.active_count() == before
    assert collector.close()


def test_a_broken_store_is_logged_once_and_what_was_collected_waits(store, make_correction, caplog):
    content = store.path.read_bytes()
    store.path.write_bytes(b"\x07 not a database at all" * 300)
    with Collector(store) as collector:
        for number in range(3):
            collector.submit(make_correction(f"question {number}"))
            assert not collector.flush()
        balanced(collector, submitted=3, waiting=3, spilled=3)
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "SQLITE_NOTADB" in record.message
        store.path.write_bytes(content)
        assert collector.flush()
        balanced(collector, submitted=3, written=3, spilled=3, replayed=3)
    assert store.count() == 3


def test_a_collector_comes_back_to_its_store_by_itself(store, make_correction):
    away = store.path.with_name("away.db")
    store.path.rename(away)
    with Collector(store) as collector:
        collector.submit(make_correction())
        assert not collector.flush()
        away.replace(store.path)
        wait_until(lambda: collector.counters.written == 1)


def test_what_a_closed_collector_left_is_found_by_the_next(store, make_correction):
    away = store.path.with_name("away.db")
    store.path.rename(away)
    batch = [make_correction(f"question {number}") for number in range(3 * BATCH)]
    with Collector(store) as collector:
        for correction in batch:
            collector.submit(correction)
    assert not collector.close()
    balanced(collector, waiting=len(batch), spilled=len(batch))
    away.replace(store.path)
    with Collector(store) as collector:
        wait_until(lambda: collector.counters.adopted == len(batch))
    assert list(store.corrections()) == batch
    assert not list(spill_of(store).glob("*"))


def test_a_bad_correction_takes_no_other_with_it(store, make_correction, caplog):
    batch = [make_correction("a"), make_correction("b", subject="\ud800"), make_correction("c"), "no correction at all"]
    with Collector(store, redact=None) as collector:
        with locked(store):
            collector.submit(make_correction("first"))  # keeps the writer at it, so that the rest is one batch
            for correction in batch:
                collector.submit(correction)
        collector.flush()
        assert collector.counters == Counters(submitted=5, written=3, failed=2)
    assert [found.exchange.question for found in store.corrections()] == ["a", "c", "first"]
    assert len(caplog.records) == 1


def test_a_collector_that_nobody_holds_writes_the_rest_and_ends(store, make_correction):
    before = set(threading.enumerate())
    collector = Collector(store)
    with locked(store):
        for number in range(20):
            collector.submit(make_correction(f"question {number}"))
        (writer,) = set(threading.enumerate()) - before
        del collector
        gc.collect()
        assert writer.is_alive()
    writer.join(timeout=20)
    assert not writer.is_alive()
    assert store.count() == 20


EXIT = """
import sys
from aligner_chain.exchange import Correction, Exchange
from bootstrap import Collector, CorrectionStore

collector = Collector(CorrectionStore(sys.argv[1]))
for number in range(500):
    collector.submit(Correction(exchange=Exchange.of(f"question {number}", "a"), text="b", outcome="corrected"))
"""


def test_the_rest_is_written_at_exit(store, run_python):
    done = run_python(EXIT, store.path)
    assert done.returncode == 0, done.stderr
    assert store.count() == 500


FORK = """
import os, sys, threading
from aligner_chain.exchange import Correction, Exchange
from bootstrap import Collector, CorrectionStore

def correction(question):
    return Correction(exchange=Exchange.of(question, "a"), text="b", outcome="corrected")

collector = Collector(CorrectionStore(sys.argv[1]))
busy = threading.Event()

def keep_writing():
    while not busy.is_set():
        collector.submit(correction("parent"))
        collector.flush()

thread = threading.Thread(target=keep_writing)
thread.start()
failures = 0
for number in range(10):
    child = os.fork()
    if not child:
        fresh = collector.counters.submitted == 0
        collector.submit(correction(f"child {number}"))
        os._exit(0 if fresh and collector.flush(timeout=30) and collector.counters.written == 1 else 1)
    failures += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
busy.set()
thread.join()
collector.close()
print(failures, collector.counters.submitted - collector.counters.written)
"""


def test_a_forked_child_has_a_queue_and_a_writer_of_its_own(store, run_python):
    done = run_python(FORK, store.path)
    assert done.stdout.split() == ["0", "0"], done.stderr
    questions = [found.exchange.question for found in store.corrections()]
    assert sorted(question for question in questions if question != "parent") == [f"child {n}" for n in range(10)]


SLOW_FORK = """
import os, sys, threading
from aligner_chain.exchange import Correction, Exchange
from bootstrap import Collector, CorrectionStore

class SlowStore(CorrectionStore):
    def append(self, corrections):
        begun.set()
        proceed.wait()
        steps.append("written")
        return super().append(corrections)

begun, proceed, steps = threading.Event(), threading.Event(), []
collector = Collector(SlowStore(sys.argv[1]))
collector.submit(Correction(exchange=Exchange.of("q", "a"), text="b", outcome="corrected"))
begun.wait()
threading.Timer(0.2, proceed.set).start()
if not os.fork():
    os._exit(0)
steps.append("forked")
print(*steps)
"""


def test_a_fork_waits_until_the_store_is_at_rest(store, run_python):
    assert run_python(SLOW_FORK, store.path).stdout.split() == ["written", "forked"]


@pytest.mark.parametrize("capacity", [1, 3])
def test_the_queue_takes_as_many_as_it_may(store, make_correction, capacity):
    with Collector(store, capacity=capacity) as collector:
        for _ in range(4):
            for number in range(capacity):
                assert collector.submit(make_correction(f"question {number}"))
            collector.flush()
        balanced(collector, submitted=4 * capacity, written=4 * capacity)


def test_in_durable_mode_it_is_on_the_disk_when_submit_returns(store, make_correction):
    with Collector(store, durable=True) as collector:
        with locked(store):
            batch = [make_correction(f"question {number}", text=f"\ud800 {number}") for number in range(20)]
            assert all(map(collector.submit, batch))
            (file,) = spill_of(store).iterdir()
            lines = file.read_bytes().splitlines()
            assert [record_of(json.loads(line)).correction for line in lines] == batch
            assert file.stat().st_mode & 0o777 == 0o600
        assert collector.flush()
        balanced(collector, written=20, spilled=20, replayed=20)
        assert list(store.corrections()) == batch
        assert file.stat().st_size == 0
    assert not file.exists()


LOOK = """
import sys
from bootstrap import CorrectionStore
print(CorrectionStore(sys.argv[1]).count())
"""


def test_what_is_synced_is_still_known_to_be_open(store, make_correction, run_python, monkeypatch):
    monkeypatch.setattr("bootstrap.collect.delivery._MOST_AT_WORK_S", 60.0)
    delivery = Delivery(store, OnceLog())
    for number in range(3):
        assert delivery.put([Record(correction=make_correction())]) == (0, ())
        delivery.settle()
        # Who takes itself for the last that has the file open removes SQLite's log, with all that is written afterwards.
        assert run_python(LOOK, store.path).stdout == f"{number + 1}\n"
    delivery.rest()
    assert store.count() == 3


def test_fsync_collects_the_same(store, make_correction):
    with Collector(store, durable=True, fsync=True) as collector:
        assert collector.submit(make_correction())
        assert collector.flush()
    assert store.count() == 1


def test_lines_that_a_kill_cut_off_are_counted_and_take_no_other_with_them(store, make_correction):
    spill_of(store).mkdir()
    whole = [line_of(Record(correction=make_correction(f"question {number}"))) for number in range(4)]
    (spill_of(store) / "1-torn.jsonl").write_bytes(whole[0] + whole[1][:50])
    (spill_of(store) / "2-torn.jsonl").write_bytes(whole[1][:-1])  # nothing is missing but the line's end
    (spill_of(store) / "3-damaged.jsonl").write_bytes(whole[2] + b"\0\0\0\n" + b"[]\n" + whole[3])
    (spill_of(store) / "4-empty.jsonl").touch()
    with Collector(store) as collector:
        assert collector.flush()
        balanced(collector, submitted=0, adopted=4, torn=3)
    assert [found.exchange.question for found in store.corrections()] == [f"question {n}" for n in range(4)]
    assert not list(spill_of(store).glob("*"))


def test_lines_longer_than_what_is_read_at_once(store, make_correction):
    spill_of(store).mkdir()
    batch = [make_correction(text="x" * length) for length in (3_000_000, 10, 1 << 20, 0)]
    lines = b"".join(line_of(Record(correction=correction)) for correction in batch)
    (spill_of(store) / "1-long.jsonl").write_bytes(lines)
    with Collector(store) as collector:
        assert collector.flush()
    assert list(store.corrections()) == batch


def test_the_log_of_a_living_collector_is_nobody_elses(store, make_correction):
    away = store.path.with_name("away.db")
    store.path.rename(away)
    with Collector(store, durable=True) as one:
        one.submit(make_correction("a"))
        away.replace(store.path)
        with Collector(store, durable=True) as other, locked(store):
            other.submit(make_correction("b"))
            assert len(list(spill_of(store).iterdir())) == 2
        assert one.flush()
        assert one.counters.written + other.counters.written + one.counters.adopted == 2
        assert other.counters.adopted == 0
    assert store.count() == 2


LIMITED = """
import resource, sys
from aligner_chain.exchange import Correction, Exchange
from bootstrap import Collector, CorrectionStore

collector = Collector(CorrectionStore(sys.argv[1]), durable=True, spill=sys.argv[2], capacity=5)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
taken = [
    collector.submit(Correction(exchange=Exchange.of(f"question {number}", "a"), text="b", outcome="corrected"))
    for number in range(50)
]
counters = collector.counters
assert counters.submitted == 50 == counters.refused + counters.waiting + counters.written, counters
assert counters.undurable == 5
assert counters.spilled == sum(taken) < 20
import os
os._exit(0)
"""


def test_a_full_disk_refuses_and_keeps_what_was_taken(store, run_python, tmp_path):
    with locked(store):
        done = run_python(LIMITED, store.path, tmp_path / "spill")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("The log in") == 1
    with Collector(store, spill=tmp_path / "spill") as collector:
        assert collector.flush()
        assert collector.counters.adopted == store.count() > 5
        assert collector.counters.torn == 0  # a line that did not fit was taken back


def hide(correction: Correction) -> Correction:
    return replace(correction, exchange=Exchange.of("hidden", "hidden"), text="hidden", edits=())


@pytest.mark.parametrize("durable", [False, True])
def test_no_disk_sees_what_was_not_redacted(store, make_correction, durable):
    away = store.path.with_name("away.db")
    store.path.rename(away)
    with Collector(store, durable=durable, redact=hide) as collector:
        for _ in range(3):
            collector.submit(make_correction("secret", "secret", "secret two"))
        assert not collector.flush()
        (file,) = spill_of(store).iterdir()
        assert b"secret" not in file.read_bytes()
        assert file.read_bytes().count(b"hidden") == 9
        away.replace(store.path)
        assert collector.flush()
    assert {(record.correction.text, record.redactor) for record in store.records()} == {("hidden", "hide")}


@pytest.mark.parametrize("durable", [False, True])
def test_what_the_redactor_fails_on_is_refused(store, make_correction, caplog, durable):
    def fails(correction: Correction) -> Correction:
        if "secret" in correction.text:
            raise ValueError(correction.text)
        return correction

    with Collector(store, durable=durable, redact=fails) as collector:
        taken = [collector.submit(make_correction(text=text)) for text in ("secret", "good", "secret")]
        collector.flush()
        balanced(collector, submitted=3, written=1, refused=2)
    assert taken == ([False, True, False] if durable else [True] * 3)
    (record,) = caplog.records
    assert "ValueError" in record.message
    assert "secret" not in record.message
    assert [found.text for found in store.corrections()] == ["good"]


def test_a_share_of_the_unchanged_is_kept_with_its_weight(store):
    def correction(answer, outcome):
        return Correction(exchange=Exchange.of("q", answer), text="good", outcome=outcome)

    unchanged = [correction("good", "approved") for _ in range(1000)]
    others = [correction("bad", "corrected"), correction("good", "failed")]
    with Collector(store, unchanged=0.1) as collector:
        assert all(map(collector.submit, unchanged + others))
        collector.flush()
        kept = collector.counters.written - 2
        assert 50 < kept < 160
        balanced(collector, submitted=1002, sampled_out=1000 - kept)
    weights = {record.correction.id: record.weight for record in store.records()}
    assert [weights.pop(other.id) for other in others] == [1, 1]
    assert set(weights.values()) == {10}
    with Collector(store, unchanged=0.1) as collector:  # the same are chosen again
        for one in unchanged:
            collector.submit(one)
    assert store.count() == kept + 2


@pytest.mark.parametrize(
    "wrong", [{"fsync": True}, {"capacity": 0}, {"unchanged": 1.1}, {"unchanged": -0.1}, {"unchanged": float("nan")}]
)
def test_arguments_out_of_range_are_refused(store, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Collector(store, **wrong)


SIGTERM = """
import os, signal, sys, time
from aligner_chain.exchange import Correction, Exchange
from bootstrap import Collector, CorrectionStore

if sys.argv[2] == "own handler":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
collector = Collector(CorrectionStore(sys.argv[1]), flush_on_sigterm=sys.argv[2] != "not asked for")
for number in range(500):
    collector.submit(Correction(exchange=Exchange.of(f"question {number}", "a"), text="b", outcome="corrected"))
with collector._writer.memory.lock:  # what the main thread holds when the signal comes must not hold the flush up
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("how", "code", "least"),
    [("asked for", -signal.SIGTERM, 500), ("own handler", 7, 500), ("not asked for", -signal.SIGTERM, 0)],
)
def test_sigterm_flushes_and_ends_the_process_as_before(store, run_python, how, code, least):
    done = run_python(SIGTERM, store.path, how)
    assert done.returncode == code, done.stderr
    assert least <= store.count() <= (500 if least else 400)


def test_sigterm_is_asked_for_in_the_main_thread(store):
    with ThreadPoolExecutor() as threads, pytest.raises(ValueError, match="Make the Collector there"):
        threads.submit(Collector, store, flush_on_sigterm=True).result()


@pytest.mark.parametrize("load", [Load(durable=False), Load(durable=True), Load(durable=True, fork=True)], ids=str)
def test_what_was_accepted_is_found_after_a_kill(tmp_path, load):
    load = replace(load, processes=2, capacity=100)
    store, noise = SqliteFolder(tmp_path), random.Random(str(load))
    CorrectionStore(store.url)
    killed = Killed(store.url, tmp_path, load)
    with killed.running() as pids:
        store.stop()
        time.sleep(0.3)
        killed.kill(noise, pids)
    store.start()
    assert killed.restart().adopted > 0
    missing = killed.missing()
    assert len(missing) == 2
    assert max(missing.values()) <= (0 if load.durable else load.capacity)
    assert killed.restart().adopted == 0


def balanced(collector: Collector, **expected: int) -> None:
    """The account adds up, and says what is expected."""
    counters = collector.counters
    settled = counters.written + counters.refused + counters.failed + counters.sampled_out
    assert counters.submitted == settled + counters.waiting, counters
    assert 0 <= counters.spilled - counters.replayed <= counters.waiting, counters
    assert counters == replace(counters, **expected)


def spill_of(store: CorrectionStore) -> Path:
    return store.path.with_name("corrections.db-spill")


def wait_until(condition) -> None:
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come so far in 20 s")


def test_counters_are_told_in_words():
    assert str(Counters(submitted=3, written=2, waiting=1)) == "submitted 3, written 2, waiting 1"
    assert str(Counters()) == "nothing submitted"
