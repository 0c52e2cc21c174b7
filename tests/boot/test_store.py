from __future__ import annotations

import dataclasses
import json
import sqlite3
import string
import subprocess
import threading
import traceback
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aligner_chain.exchange import Correction, Edit, Exchange, Finding, Turn, Usage
from bootstrap.database import Database
from bootstrap.errors import RecordError, StoreError
from bootstrap.records import (
    DOCUMENTS,
    HELD_OUT_SHARE,
    Feedback,
    Record,
    encoded,
    fields_of,
    json_of,
    normalised_prompt,
    split_of,
)
from bootstrap.store import SCHEMA, CorrectionStore
from bootstrap.tables import TOMBSTONES

# What a model or a user writes may be any Python string, also one that no encoding takes; identifiers are Unicode.
anything = st.text(st.characters(), max_size=12)
identifier = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=12)  # PostgreSQL has no NUL
finite = st.floats(allow_nan=False, allow_infinity=False)
maybe = st.none() | identifier
counts = st.integers(0, 10**9)
exchanges = st.builds(
    Exchange,
    turns=st.lists(st.builds(Turn, role=identifier, text=anything), max_size=3).map(tuple),
    answer=anything,
    context=st.lists(anything, max_size=2).map(tuple),
    **dict.fromkeys(("upstream", "message_id", "run_id", "subject", "tenant", "split_key"), maybe),
)
findings = st.builds(
    Finding, check=anything, action=st.just("warn"), message=anything, start=st.none() | counts, end=st.none() | counts
)
corrections = st.builds(
    Correction,
    exchange=exchanges,
    text=anything,
    outcome=st.sampled_from(["approved", "corrected", "kept", "skipped", "failed"]),
    reason=anything,
    edits=st.lists(st.builds(Edit, start=counts, end=counts, before=anything, after=anything), max_size=2).map(tuple),
    scores=st.dictionaries(anything, finite, max_size=2),
    thresholds=st.dictionaries(anything, finite, max_size=1),
    criteria=st.lists(anything, max_size=2).map(tuple),
    findings=st.lists(findings, max_size=1).map(tuple),
    aligner=identifier,
    template=identifier,
    usage=st.builds(Usage, prompt_tokens=counts, new_tokens=counts, forwards=counts, latency_s=finite),
    id=identifier,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(batch=st.lists(corrections, max_size=4, unique_by=lambda correction: correction.id))
def test_everything_comes_back_equal_and_in_order_of_ids(tmp_path_factory, batch):
    store = CorrectionStore(tmp_path_factory.mktemp("store") / "corrections.db")
    assert store.append(batch) == len(batch)
    found = list(store.corrections())
    assert found == sorted(batch, key=lambda correction: correction.id.encode())


@settings(max_examples=100)
@given(correction=corrections)
def test_documents_are_written_as_the_json_module_writes_them(correction):
    exchange = correction.exchange
    plain = {
        "turns": [[turn.role, turn.text] for turn in exchange.turns],
        "answer": exchange.answer,
        "context": exchange.context,
        "text": correction.text,
        "reason": correction.reason,
        "edits": [[edit.start, edit.end, edit.before, edit.after] for edit in correction.edits],
        "scores": {name: float(value) for name, value in correction.scores.items()},
        "thresholds": dict(correction.thresholds),
        "criteria": correction.criteria,
        "findings": [dataclasses.asdict(finding) for finding in correction.findings],
        "usage": dataclasses.asdict(correction.usage),
    }
    record = Record(correction=correction)
    row = encoded(record)
    assert {name: row[name] for name in DOCUMENTS} == {name: json.dumps(value) for name, value in plain.items()}
    assert json.loads(json_of(record)) == fields_of(record)
    assert {name: fields_of(record)[name] for name in DOCUMENTS} == json.loads(json.dumps(plain))
    prompt = [[turn.role, " ".join(turn.text.casefold().split())] for turn in exchange.turns]
    assert normalised_prompt(exchange.turns) == json.dumps(prompt)


@pytest.mark.parametrize(
    "wrong",
    [
        {"scores": {"keep": float("nan")}},
        {"thresholds": {"keep": float("inf")}},
        {"scores": {1: 0.5}},
        {"usage": Usage(latency_s=float("-inf"))},
        {"edits": (Edit(start=1j, end=1, before="a", after="b"),)},
        {"text": None},
        {"criteria": (7,)},
    ],
    ids=str,
)
def test_what_is_no_text_or_no_number_is_refused(make_correction, wrong):
    with pytest.raises(RecordError, match="cannot be stored"):
        encoded(Record(correction=dataclasses.replace(make_correction(), **wrong)))


@pytest.mark.parametrize("write", [encoded, json_of, fields_of])
@pytest.mark.parametrize("weight", [float("nan"), float("inf"), "many"])
def test_a_weight_is_a_finite_number_on_every_way(make_correction, write, weight):
    with pytest.raises(RecordError, match="cannot be stored"):
        write(Record(correction=make_correction(), weight=weight))


def test_an_error_is_not_stored(store, make_correction):
    store.append([dataclasses.replace(make_correction(outcome="failed"), error=ValueError("no"))])
    assert [found.error for found in store.corrections()] == [None]


def test_appending_again_adds_nothing_and_changes_nothing(store, make_correction):
    first, second, third = make_correction("a"), make_correction("b"), make_correction("c")
    assert store.append([first, second]) == 2
    changed = dataclasses.replace(first, text="something else")
    assert store.append([changed, third, third]) == 1
    assert {found.id: found.text for found in store.corrections()} == {
        first.id: "good",
        second.id: "good",
        third.id: "good",
    }
    assert store.append([]) == 0


def test_a_batch_with_a_bad_correction_is_written_not_at_all(store, make_correction):
    with pytest.raises(RecordError, match="surrogates not allowed"):
        store.append([make_correction("a"), make_correction("b", subject="\ud800")])
    with pytest.raises(RecordError, match="cannot be stored"):
        store.append([make_correction("a"), dataclasses.replace(make_correction("b"), scores={"keep": "high"})])
    assert store.count() == 0


def test_pages_come_together_without_gap_or_repetition(store, make_correction, monkeypatch):
    monkeypatch.setattr("bootstrap.store._PAGE", 7)
    batch = [make_correction(f"question {number}") for number in range(50)]
    store.append(batch)
    assert list(store.corrections()) == batch
    assert list(store.corrections("train")) == [one for one in batch if split_of(one.exchange.turns) == "train"]


def test_a_reader_takes_in_what_is_written_meanwhile(store, make_correction, monkeypatch):
    monkeypatch.setattr("bootstrap.store._PAGE", 2)
    batch = [make_correction(f"question {number}") for number in range(8)]
    store.append(batch[:4])
    reading = store.corrections()
    first = next(reading)
    store.append(batch[4:])
    assert [first, *reading] == batch


def test_counts_by_split_add_up(store, make_correction):
    store.append(make_correction(f"question {number}") for number in range(200))
    parts = [store.count(split) for split in ("train", "gate", "report")]
    assert sum(parts) == store.count() == 200
    assert all(parts)
    assert parts == [len(list(store.corrections(split))) for split in ("train", "gate", "report")]


def test_an_unknown_split_is_refused(store):
    with pytest.raises(ValueError, match="train, gate, report"):
        store.count("test")


def test_prompts_are_distinct_and_first_seen(store, make_correction):
    first, again, other = (
        make_correction("Who  is IT?", answer="x"),
        make_correction("who is\nit?", answer="y"),
        make_correction("And now?"),
    )
    store.append([other, again, first])  # the ids say which came first
    splits = {split_of(one.exchange.turns) for one in (first, other)}
    found = [exchange for split in splits for exchange in store.prompts(split)]
    assert sorted(found, key=lambda exchange: exchange.question) == [other.exchange, first.exchange]


def test_the_split_is_the_written_one(store, make_correction):
    store.append([make_correction("a question")])
    with closing(sqlite3.connect(store.path)) as connection:
        (written,) = connection.execute("SELECT split FROM corrections").fetchone()
        assert written == split_of((Turn(role="user", text="a question"),))
        connection.execute("UPDATE corrections SET split = 'report'")
        connection.commit()
    assert store.count("report") == 1


def held_out_key(want: bool) -> str:
    turns = (Turn(role="user", text="the same prompt"),)
    return next(key for key in map(str, range(1000)) if (split_of(turns, key) != "train") is want)


def test_a_prompt_once_held_out_is_never_training_data(store, make_correction):
    held, trained = (make_correction("the same prompt", split_key=held_out_key(want)) for want in (True, False))
    store.append([trained])
    assert list(store.corrections("train")) == [trained]
    store.append([held])
    assert list(store.corrections("train")) == store.prompts("train") == []
    assert store.count("train") == 0
    assert store.count() == 2


@given(st.lists(st.text(string.ascii_letters, min_size=1), min_size=1), maybe)
def test_a_split_does_not_depend_on_case_or_white_space(words, key):
    plain, spaced = (Turn(role="user", text=text) for text in (" ".join(words), "\n\t ".join(words).upper() + " "))
    assert normalised_prompt([plain]) == normalised_prompt([spaced])
    assert split_of([plain], key) == split_of([spaced], key)


def test_a_fifth_is_held_out_half_of_it_for_the_gate():
    found = [split_of((Turn(role="user", text=f"question {number}"),)) for number in range(10_000)]
    held_out = [split for split in found if split != "train"]
    assert len(held_out) / len(found) == pytest.approx(HELD_OUT_SHARE, abs=0.015)
    assert held_out.count("gate") / len(held_out) == pytest.approx(0.5, abs=0.04)


def test_the_split_key_decides_what_is_held_out_and_the_prompt_which_half():
    turns = [(Turn(role="user", text=f"question {number}"),) for number in range(200)]
    for key in map(str, range(20)):
        splits = [split_of(one, key) for one in turns]
        assert len({split == "train" for split in splits}) == 1
        if "train" not in splits:
            # Without the key, or with another that holds out, the same prompts are in the same half.
            alone = [split_of(one) for one in turns]
            assert all(mine in (own, "train") for mine, own in zip(alone, splits, strict=True))
            assert {"gate", "report"} == set(splits)


def test_a_split_stays_what_it_is_in_every_version():
    letters = [split_of((Turn(role="user", text=letter),)) for letter in string.ascii_lowercase]
    assert "".join(split[0] for split in letters) == "rtrttttttttrrtttrtrttttgtt"


def test_the_role_is_part_of_the_prompt():
    assert normalised_prompt([Turn(role="user", text="a")]) != normalised_prompt([Turn(role="system", text="a")])
    assert normalised_prompt([Turn(role="user", text="a b")]) != normalised_prompt(
        [Turn(role="user", text="a"), Turn(role="user", text="b")]
    )


def test_the_file_is_a_write_ahead_log_and_knows_its_version(store):
    with closing(sqlite3.connect(store.path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("SELECT version_num FROM collection_revision").fetchone() == (SCHEMA.head,)


def test_a_store_opens_again(store, make_correction):
    store.append([make_correction()])
    store.close()
    assert CorrectionStore(f"sqlite:///{store.path}").count() == 1
    assert CorrectionStore(str(store.path)).count() == 1


def test_threads_share_a_store(store, make_correction):
    def write(thread: int) -> None:
        for number in range(10):
            store.append([make_correction(f"{thread} {number}")])

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.count() == 40


@pytest.fixture
def full_file(store, make_correction) -> bytes:
    store.append(make_correction(f"question {number} " * 50) for number in range(200))
    return store.path.read_bytes()


def random_pages(content: bytes) -> bytes:
    noise = bytes(number * 7919 % 251 for number in range(len(content) - 4096))
    return content[:4096] + noise


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: b"\x07 not a database at all" * 300, id="random bytes"),
        pytest.param(lambda content: content[: len(content) // 2], id="truncated"),
        pytest.param(lambda content: content[:50], id="a piece of the header"),
        pytest.param(random_pages, id="random pages"),
        pytest.param(lambda content: content.replace(b'[["user', b'\x01["user'), id="damage that SQLite does not see"),
    ],
)
def test_a_corrupt_file_is_named_with_the_ways_out(tmp_path, full_file, damage):
    path = tmp_path / "my corrupt.db"
    path.write_bytes(damage(full_file))
    with pytest.raises(StoreError) as caught:
        list(CorrectionStore(path).corrections())
    message = str(caught.value)
    assert str(path) in message
    assert "Restore a copy" in message
    assert f"mv '{path}' '{tmp_path}/broken-my corrupt.db'" in message


def test_the_way_out_of_corruption_works(store, full_file, make_correction):
    with closing(sqlite3.connect(store.path)) as elsewhere:
        elsewhere.execute("UPDATE corrections SET subject = 'somebody'")
        elsewhere.commit()  # from now on there is a log beside the file
        store.path.write_bytes(full_file[:50])
        with pytest.raises(StoreError) as caught:
            store.count()
    command = str(caught.value).splitlines()[-1]
    # SQLite would replay the log into the next database of that name.
    assert f"{store.path}-wal" in command
    subprocess.run(command, shell=True)
    assert not store.path.with_name("corrections.db-wal").exists()
    assert CorrectionStore(store.path).append([make_correction()]) == 1


def test_another_programs_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE songs (name TEXT)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="lacks collection_revision"):
        CorrectionStore(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "target",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "postgres://someone:secret@host/name",
        "postgresql+asyncpg://someone:secret@host/name",
        "postgresql://someone:secret@host:port/name",
        "://secret",
        "mysql+pymysql://x",
    ],
)
def test_only_files_and_postgresql_are_supported(target):
    with pytest.raises(StoreError, match="sqlite:////absolute/path") as caught:
        CorrectionStore(target)
    assert "secret" not in str(caught.value)


def test_folders_are_made_and_a_file_in_the_way_is_named(tmp_path):
    store = CorrectionStore(tmp_path / "a" / "b" / "corrections.db")
    assert store.path.is_file()
    with pytest.raises(StoreError, match="cannot be made"):
        CorrectionStore(store.path / "more.db")


def test_a_lock_that_is_held_too_long_is_an_error_that_says_so(tmp_path):
    database = Database(tmp_path / "corrections.db", SCHEMA, busy_timeout_s=0.01)
    with database.write():
        with database.read():  # a reader is not held up
            pass
        with pytest.raises(StoreError, match="SQLITE_BUSY") as caught, database.write():
            pass
    assert "Another process is writing" in str(caught.value)


def test_a_file_that_another_process_is_making_is_waited_for(tmp_path):
    path = tmp_path / "corrections.db"
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as elsewhere:
        elsewhere.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="SQLITE_BUSY"):
            Database(path, SCHEMA, busy_timeout_s=0.01)
        release = threading.Timer(0.1, elsewhere.execute, ["ROLLBACK"])
        release.start()
        assert CorrectionStore(path).count() == 0
        release.join()


def test_an_error_inside_a_transaction_undoes_it(store):
    def fail() -> None:
        with store.database.write() as connection:
            connection.execute(TOMBSTONES.insert(), {"kind": "correction", "key": "a", "at_ms": 1})
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert store.deleted(["a"]) == set()


def test_an_error_does_not_show_the_rows_it_is_about(store):
    private = "-".join(["a", "secret"])
    with pytest.raises(StoreError) as caught, store.database.write() as connection:
        connection.execute(TOMBSTONES.insert(), [{"kind": private, "key": "a", "at_ms": 1}] * 2)
    assert private not in "".join(traceback.format_exception(caught.value))


def test_no_byte_of_what_is_deleted_stays_in_the_file(store, make_correction):
    batch = [
        make_correction(f"question {number}", "private" * number, "PRIVATE" * number, subject="private person")
        for number in range(1, 60)
    ]
    store.append([*batch, make_correction("kept", "kept answer", "kept")])
    store.add_feedback([Feedback(kind="comment", value="private remark", correction_id=batch[7].id)])
    with store.kept_open():
        assert store.delete(subject="private person") == 59
        on_disk = b"".join(file.read_bytes() for file in store.path.parent.glob("corrections.db*"))
    assert b"private" not in on_disk.lower()
    assert b"kept answer" in on_disk


def test_a_reader_of_the_log_holds_up_a_deletion_and_it_can_be_finished(tmp_path, make_correction):
    store = CorrectionStore(tmp_path / "corrections.db")
    store.database = Database(store.path, SCHEMA, busy_timeout_s=0.01)
    sent = make_correction("question", "private")
    store.append([sent])
    with store.database.read() as reader:
        reader.execute(TOMBSTONES.select()).all()
        with pytest.raises(StoreError, match="The rows are deleted, but their text is still on the disk"):
            store.delete(ids=[sent.id])
    assert store.count() == 0
    assert store.delete(ids=[sent.id]) == 0
    assert not any(b"private" in file.read_bytes() for file in tmp_path.glob("corrections.db*"))


IMPORTS = """
import json, sys
import bootstrap
light = sorted({name.partition(".")[0] for name in sys.modules})
import bootstrap.store
bootstrap.CorrectionStore, bootstrap.Collector, bootstrap.Registry
print(json.dumps([light, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def test_importing_loads_no_framework(run_python):
    done = run_python(IMPORTS)
    assert done.returncode == 0, done.stderr
    package, names = map(set, json.loads(done.stdout))
    assert "sqlalchemy" in names - package
    assert not names & {
        "torch",
        "transformers",
        "trl",
        "peft",
        "datasets",
        "accelerate",
        "langchain_core",
        "numpy",
        "alembic",
        "psycopg",
    }


def test_the_package_says_what_it_does_not_have():
    import bootstrap

    with pytest.raises(AttributeError, match="Nothing"):
        bootstrap.Nothing  # noqa: B018
    assert set(bootstrap.__all__) <= set(dir(bootstrap))


MISSING = """
import sys
sys.modules["sqlalchemy"] = None
from aligner_chain.errors import MissingExtraError
try:
    from bootstrap import CorrectionStore
except MissingExtraError as error:
    print(error)
"""


def test_a_missing_sqlalchemy_says_what_to_install(run_python):
    assert "pip install 'aligner-chain[collect]'" in run_python(MISSING).stdout


def test_a_folder_is_no_store(tmp_path):
    with pytest.raises(
        StoreError, match=r"is a folder, and a database is a file\. One in it would be  .*corrections\.db$"
    ):
        CorrectionStore(tmp_path)


def test_a_file_that_was_moved_away_is_not_made_anew(store, make_correction):
    store.append([make_correction()])
    assert store.path is not None
    elsewhere = store.path.with_name("moved.db")
    store.path.rename(elsewhere)
    with pytest.raises(StoreError, match="is there"):
        store.append([make_correction()])
    assert not store.path.exists()
    elsewhere.rename(store.path)
    assert store.append([make_correction()]) == 1
