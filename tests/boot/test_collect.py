from __future__ import annotations

import gc
import logging
import sqlite3
import threading
from contextlib import closing, contextmanager

import pytest

from bootstrap.collect import _BATCH, Collector, Counters
from bootstrap.store import CorrectionStore


@contextmanager
def locked(store: CorrectionStore):
    """Holds the writer's lock of the store's file, as another process would."""
    with closing(sqlite3.connect(store.path, isolation_level=None)) as elsewhere:
        elsewhere.execute("BEGIN IMMEDIATE")
        yield
        elsewhere.execute("ROLLBACK")


def test_what_is_submitted_is_written(store, make_correction):
    batch = [make_correction(f"question {number}") for number in range(3 * _BATCH)]
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
            assert collector.counters == Counters(submitted=1000)  # all taken while nothing could be written
            assert collector.flush(timeout=0.01) is False
        assert collector.flush() is True
        assert collector.counters.written == 1000


def test_a_full_queue_refuses_and_says_so_once(store, make_correction, caplog):
    with Collector(store, capacity=5) as collector:
        with locked(store):
            for number in range(_BATCH + 100):
                collector.submit(make_correction(f"question {number}"))
            refused = collector.counters.refused
            # What waits is at most the capacity and the one batch that the writer has taken.
            assert 100 - 5 <= refused < _BATCH + 100
        collector.flush()
        assert collector.counters.written == store.count() == _BATCH + 100 - refused
    (record,) = caplog.records
    assert "5 wait already; Collector(store, capacity=...) sets how many may" in record.message


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


def test_a_broken_store_is_counted_and_logged_once(store, make_correction, caplog):
    store.path.write_bytes(b"\x07 not a database at all" * 300)
    with Collector(store) as collector:
        for number in range(3):
            collector.submit(make_correction(f"question {number}"))
            assert collector.flush()
        assert collector.counters == Counters(submitted=3, failed=3)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "SQLITE_NOTADB" in record.message


def test_a_store_that_is_mended_is_used_again(store, make_correction):
    content = store.path.read_bytes()
    with Collector(store) as collector:
        store.path.write_bytes(b"\x07 not a database at all" * 300)
        collector.submit(make_correction("a"))
        collector.flush()
        store.path.write_bytes(content)
        collector.submit(make_correction("b"))
        collector.flush()
        assert collector.counters == Counters(submitted=2, written=1, failed=1)


def test_a_bad_correction_takes_no_other_with_it(store, make_correction, caplog):
    batch = [make_correction("a"), make_correction("b", subject="\ud800"), make_correction("c"), "no correction at all"]
    with Collector(store) as collector:
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
                collector.submit(make_correction(f"question {number}"))
            collector.flush()
        assert collector.counters == Counters(submitted=4 * capacity, written=4 * capacity)
