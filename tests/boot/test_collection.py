"""What holds for a store in a SQLite file and in PostgreSQL alike: feedback, deletion, upgrades, several processes."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from sqlalchemy import Connection, inspect, select

from aligner_chain.errors import MissingExtraError
from aligner_chain.exchange import Correction
from bootstrap.cli import main
from bootstrap.database import Database, insert_new
from bootstrap.errors import RecordError, StoreError
from bootstrap.records import Feedback, Record
from bootstrap.store import SCHEMA, CorrectionStore, _row, _within
from bootstrap.tables import CORRECTIONS, METADATA, NEIGHBOURS

HOSTILE = "\ud800 half, \0 nothing, \\u0000, ' \" %s %(id)s :id ; DROP TABLE corrections; \u202e \U0001f600"


def collected(correction: Correction, at_ms: int) -> Record:
    return Record(correction=correction, at_ms=at_ms)


def test_hostile_texts_come_back_as_they_were(any_store, make_correction):
    sent = make_correction(HOSTILE, HOSTILE, HOSTILE + "!", context=(HOSTILE,), subject="a'b\"c%s:id;")
    sent = dataclasses.replace(sent, scores={HOSTILE: 1e300}, criteria=(HOSTILE,), reason=HOSTILE)
    said = [
        Feedback(kind="edit", value=HOSTILE, correction_id=sent.id, at_ms=1),
        Feedback(kind="score", value=2**70 + 1, correction_id=sent.id, at_ms=2),
        Feedback(kind="thumb", value=False, correction_id=sent.id, at_ms=3),
    ]
    assert any_store.append([sent]) == 1
    assert any_store.add_feedback(said) == 3
    assert list(any_store.corrections()) == [sent]
    assert any_store.get(sent.id).feedback == tuple(said)


def test_appending_is_all_or_none_and_conflict_free(any_store, make_correction):
    first, second, third = (make_correction(name) for name in "abc")
    assert any_store.append([second, first, second]) == 2
    with pytest.raises(RecordError, match="NUL"):
        any_store.append([third, make_correction(subject="a\0b")])
    assert any_store.append([dataclasses.replace(first, text="else"), third]) == 1
    assert list(any_store.corrections()) == [first, second, third]


def test_ids_are_in_the_order_of_their_characters(any_store, make_correction):
    ids = ["Z", "a", "é", "_", "ab", "a-b", "\U0001f600", "￿"]
    any_store.append(dataclasses.replace(make_correction(), id=one) for one in ids)
    assert [one.id for one in any_store.corrections()] == sorted(ids, key=str.encode)


def test_records_of_a_time(any_store, make_correction):
    batch = [collected(make_correction(str(at_ms)), at_ms) for at_ms in range(5)]
    any_store.append(batch)
    assert list(any_store.records(since_ms=1, until_ms=3)) == batch[1:3]
    assert list(any_store.records(since_ms=4)) == batch[4:]
    assert list(any_store.records(until_ms=0)) == []


def test_feedback_finds_its_correction_by_each_name(any_store, make_correction, monkeypatch):
    monkeypatch.setattr("bootstrap.store._PAGE", 2)
    one, two, three = (make_correction(name, message_id=f"m-{name}", run_id="run") for name in "abc")
    by_message = Feedback(kind="comment", value="early", message_id="m-b", at_ms=1)
    by_run = Feedback(kind="score", value=0.5, run_id="run", at_ms=2)
    by_id = Feedback(kind="edit", value="better", correction_id=one.id, message_id="m-b", run_id="run", at_ms=3)
    nobodys = Feedback(kind="thumb", value=True, message_id="unknown")
    assert any_store.add_feedback([by_id, by_message, by_run, nobodys]) == 4
    assert any_store.add_feedback([by_id]) == 0
    any_store.append([one, two, three])
    found = {record.correction.id: record.feedback for record in any_store.records(feedback=True)}
    assert found == {one.id: (by_run, by_id), two.id: (by_message, by_run), three.id: (by_run,)}
    assert [record.feedback for record in any_store.records()] == [()] * 3
    assert any_store.get(two.id).feedback == (by_message, by_run)
    assert any_store.get("nothing") is None
    assert [record.correction for record in any_store.find(message_id="m-c")] == [three]
    assert [record.correction for record in any_store.find(run_id="run")] == [one, two, three]
    assert any_store.find(message_id="m-c", run_id="other") == []
    with pytest.raises(ValueError, match="message_id or a run_id"):
        any_store.find()


def test_feedback_that_no_database_can_hold_is_named(any_store):
    with pytest.raises(RecordError, match="author holds a NUL"):
        any_store.add_feedback([Feedback(kind="thumb", value=True, run_id="r", author="a\0b")])
    with pytest.raises(RecordError, match="surrogates"):
        any_store.get("\ud800")


def neighbours(store: CorrectionStore, *keys: str) -> None:
    rows = [{"scope": scope, "key": key, "band": 0, "value": -1} for scope in "pq" for key in keys]
    with store.database.write() as connection:
        connection.execute(NEIGHBOURS.insert(), rows)


def near(store: CorrectionStore) -> set[str]:
    with store.database.read() as connection:
        return set(connection.execute(NEIGHBOURS.select()).scalars("key"))


def test_what_is_deleted_by_id_takes_all_with_it_and_stays_away(any_store, make_correction):
    gone, kept = make_correction("a", message_id="m", run_id="r1"), make_correction("b", run_id="r2")
    said = [
        Feedback(kind="comment", value="x", **about)
        for about in ({"correction_id": gone.id}, {"message_id": "m"}, {"run_id": "r1"}, {"run_id": "r2"})
    ]
    any_store.append([gone, kept])
    any_store.add_feedback(said)
    neighbours(any_store, gone.id, kept.id, "later")
    assert any_store.delete(ids=[gone.id, "later"]) == 1
    assert near(any_store) == {kept.id}
    assert any_store.feedback_count() == 1
    assert any_store.append([gone, kept, dataclasses.replace(kept, id="later")]) == 0
    late = [dataclasses.replace(one, id=f"late {number}") for number, one in enumerate(said)]
    assert any_store.add_feedback(late) == 1
    assert any_store.deleted([gone.id, kept.id, "later", "never"]) == {gone.id, "later"}
    assert any_store.delete(ids=[gone.id]) == 0


def test_a_subject_is_deleted_with_what_was_collected_until_then(any_store, make_correction):
    ann, anns_elsewhere, bob = (
        make_correction(name, subject=subject, tenant=tenant)
        for name, subject, tenant in (("a", "ann", "x"), ("b", "ann", "y"), ("c", "bob", "x"))
    )
    any_store.append([ann, anns_elsewhere, bob])
    assert any_store.delete(subject="ann", tenant="x") == 1
    assert list(any_store.corrections()) == [anns_elsewhere, bob]
    replayed, returned = (
        make_correction("d", subject="ann", tenant="x"),
        make_correction("e", subject="ann", tenant="x"),
    )
    assert any_store.append([collected(replayed, 1), collected(returned, 2**50)]) == 1
    assert any_store.delete(subject="ann") == 2
    assert (
        any_store.append(
            [collected(make_correction("f", subject="ann", tenant=tenant), 1) for tenant in ("x", "z", None)]
        )
        == 0
    )
    assert list(any_store.corrections()) == [bob]


def test_retention_deletes_by_time_and_feedback_without_an_owner(any_store, make_correction):
    old, new = (collected(make_correction(str(at_ms), tenant="x"), at_ms) for at_ms in (10, 20))
    any_store.append([old, new])
    any_store.add_feedback(Feedback(kind="comment", value="x", run_id="nobody", at_ms=at_ms) for at_ms in (5, 25))
    any_store.add_feedback([Feedback(kind="comment", value="x", correction_id=new.correction.id, at_ms=6)])
    assert any_store.delete(before_ms=20, tenant="other") == 0
    assert any_store.delete(before_ms=20) == 1
    assert list(any_store.records()) == [new]
    assert any_store.feedback_count() == 2


@pytest.mark.parametrize("wanted", [{}, {"tenant": "x"}, {"ids": ["a"], "subject": "b"}, {"ids": ["a"], "tenant": "x"}])
def test_a_deletion_that_does_not_say_what_is_refused(any_store, wanted):
    with pytest.raises(ValueError, match="delete needs either ids, or a subject or before_ms"):
        any_store.delete(**wanted)


def test_revisions_make_the_tables_that_the_code_uses(url):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    database = Database(url, SCHEMA)
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": SCHEMA.version_table})
        assert compare_metadata(context, METADATA) == []
    database.close()


def indexes(connection: Connection) -> dict[str, tuple[list[str], dict[str, str]]]:
    """The columns of each index, and what of a table it holds."""
    return {
        one["name"]: (one["column_names"], {name: str(option) for name, option in one["dialect_options"].items()})
        for one in inspect(connection).get_indexes("corrections")
    }


def test_revisions_make_the_indexes_that_the_code_uses(any_store):
    # Alembic does not compare what an index leaves out.
    with any_store.database.write() as connection:
        migrated = indexes(connection)
        METADATA.drop_all(connection)
        METADATA.create_all(connection)
        assert indexes(connection) == migrated
    assert sum(any(name.endswith("_where") for name in options) for _, options in migrated.values()) == 4


def test_what_is_looked_for_is_found_by_an_index(any_store):
    """An index that leaves out rows is used only where the query says that it wants none of those."""
    columns, wanted = CORRECTIONS.c, _within("train")
    looked_for = {
        "corrections_by_prompt": select(columns.id).where(*wanted),
        "corrections_by_message": select(columns.id).where(columns.message_id == "a"),
        "corrections_by_run": select(columns.id).where(columns.run_id.in_(["a", "b"])),
        "corrections_by_subject": select(columns.id).where(columns.subject == "a", columns.tenant == "b"),
    }
    with any_store.database.read() as connection:
        is_server = connection.dialect.name == "postgresql"
        if is_server:  # of an empty table it reads all there is
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            connection.exec_driver_sql("SET LOCAL plan_cache_mode = force_generic_plan")
        for name, query in looked_for.items():
            compiled = query.compile(dialect=connection.dialect, compile_kwargs={"render_postcompile": True})
            values = tuple(compiled.params[one] for one in compiled.positiontup)
            explain = "EXPLAIN" if is_server else "EXPLAIN QUERY PLAN"
            plan = connection.exec_driver_sql(f"{explain} {compiled}", values).all()
            assert name in str(plan)


OLDER = """
import sys
from bootstrap.database import Database
from bootstrap.database.revisions import Schema
from bootstrap.store import SCHEMA

class Older(Schema):
    head = "0001"

Database(sys.argv[1], Older("collection", SCHEMA.tables))
"""


def make_older(url: str, run_python) -> None:
    done = run_python(OLDER, url)
    assert done.returncode == 0, done.stderr


def test_an_older_store_is_upgraded_with_all_that_is_in_it(url, run_python, make_correction, capsys):
    make_older(url, run_python)
    older = Database(url, SCHEMA, prepare=False)
    assert older.revision() == "0001"
    sent = make_correction(HOSTILE, subject="ann")
    with older.write() as connection:
        insert_new(connection, CORRECTIONS, [_row(Record(correction=sent))])
    assert main(["store", "status", "--store", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["revision"] == "0001"
    assert main(["store", "upgrade", "--store", url]) == 0
    assert "0001" in capsys.readouterr().out
    assert older.revision() == SCHEMA.head
    store = CorrectionStore(url)
    assert list(store.corrections()) == [sent]
    assert store.delete(subject="ann") == 1


RACE = """
import multiprocessing, sys
from aligner_chain.exchange import Correction, Exchange
from bootstrap.store import CorrectionStore

def write(barrier, url):
    barrier.wait()
    store = CorrectionStore(url)
    for number in range(5):
        store.append([Correction(exchange=Exchange.of("q", "a"), text="b", outcome="corrected")])

if __name__ == "__main__":
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(4)
    processes = [fork.Process(target=write, args=(barrier, sys.argv[1])) for _ in range(4)]
    [process.start() for process in processes]
    [process.join() for process in processes]
    sys.exit(max(process.exitcode for process in processes))
"""


@pytest.mark.parametrize("older", [False, True], ids=["new", "older"])
def test_processes_that_open_a_store_at_once_share_it(url, run_python, older):
    if older:
        make_older(url, run_python)
    done = run_python(RACE, url)
    assert done.returncode == 0, done.stderr
    assert CorrectionStore(url).count() == 20


def test_an_unknown_revision_is_refused_and_left_alone(any_store, url):
    with any_store.database.write() as connection:
        connection.exec_driver_sql("UPDATE collection_revision SET version_num = '0999'")
    with pytest.raises(
        StoreError, match="revision 0999; this version of aligner-chain knows revisions up to 00"
    ) as caught:
        CorrectionStore(url)
    assert "pip install --upgrade aligner-chain" in str(caught.value)
    assert any_store.count() == 0


def test_another_programs_database_is_refused_and_left_alone(url):
    database = Database(url, SCHEMA, prepare=False)
    with database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE songs (name TEXT)")
    with pytest.raises(StoreError, match="database of something else"):
        CorrectionStore(url)
    with database.write() as connection:
        connection.exec_driver_sql("DROP TABLE songs")
    assert database.revision() is None


def test_opening_does_not_wait_for_a_writer(any_store, url):
    with any_store.database.write():
        assert Database(url, SCHEMA, busy_timeout_s=0.01).revision() == SCHEMA.head


def test_a_writer_that_waits_too_long_is_told_so(any_store, url):
    impatient = Database(url, SCHEMA, busy_timeout_s=0.01)
    with any_store.database.write(), pytest.raises(StoreError, match="Another process is writing"), impatient.write():
        pass
    with impatient.write():
        pass


QUIET = """
import logging, sys
from bootstrap.store import CorrectionStore
logging.basicConfig(level=logging.ERROR)
def state():
    root = logging.getLogger()
    return root.level, list(root.handlers), logging.getLogger("sqlalchemy").level, logging.getLogger("alembic").level
before = state()
CorrectionStore(sys.argv[1])
assert state() == before
assert ("alembic" in sys.modules) == (sys.argv[2] == "new")
"""


def test_opening_leaves_logging_alone_and_loads_alembic_only_to_upgrade(url, run_python):
    for state in ("new", "known"):
        done = run_python(QUIET, url, state)
        assert done.returncode == 0, done.stderr


FORK = """
import os, sys
from aligner_chain.exchange import Correction, Exchange
from bootstrap.store import CorrectionStore

def append():
    store.append([Correction(exchange=Exchange.of("q", "a"), text="b", outcome="corrected")])

store = CorrectionStore(sys.argv[1])
append()
for _ in range(3):
    if not (child := os.fork()):
        append()
        os._exit(0)
    append()
    assert os.waitpid(child, 0)[1] == 0
append()
assert store.count() == 8, store.count()
"""


def test_a_forked_child_uses_connections_of_its_own(url, run_python):
    done = run_python(FORK, url)
    assert done.returncode == 0, done.stderr


def test_many_writes_share_a_connection_that_is_kept_open(any_store, make_correction):
    with any_store.kept_open():
        for number in range(5):
            assert any_store.append([make_correction(str(number))]) == 1
            assert sum(1 for _ in any_store.corrections()) == number + 1
        with pytest.raises(RecordError):
            any_store.append([make_correction(subject="\ud800")])
    assert any_store.count() == 5


def test_without_alembic_a_new_store_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CorrectionStore(tmp_path / "old.db").close()
    monkeypatch.setitem(sys.modules, "alembic", None)
    with pytest.raises(MissingExtraError, match=r"aligner-chain\[collect\]"):
        CorrectionStore(tmp_path / "new.db")
    CorrectionStore(tmp_path / "old.db").close()  # it is at the newest revision, and needs none
