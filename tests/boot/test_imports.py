"""Others' rows in a store: what they become, once, and what is refused as a whole."""

from __future__ import annotations

import json
import os

import pytest

from aligner_chain.exchange import Turn
from bootstrap.cli import main
from bootstrap.errors import StoreError, TrainingDataError
from bootstrap.pairs import Triple, build_pairs, human_triples, write_triples
from bootstrap.pairs.imports import import_file
from bootstrap.store import CorrectionStore

USER = Turn(role="user", text="Why?")
PREFERENCE = {"prompt": "Why?", "chosen": "Since.", "rejected": "No."}
MESSAGES = {
    "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
    "chosen": [{"role": "assistant", "content": "Since."}],
    "rejected": [{"role": "assistant", "content": "No."}],
}


@pytest.fixture
def lines(tmp_path):
    def write(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), "utf-8")
        return path

    return write


def test_a_row_is_known_as_imported_and_by_who_vouches_for_it(store, tmp_path):
    rows = [
        Triple(turns=(USER,), answer="No.", correction="Since.", context=("p",), criteria=("kind",)),
        Triple(turns=(USER,), answer="Yes.", correction=None, source="annotated"),
    ]
    write_triples(tmp_path / "rows.jsonl", rows)
    found = import_file(store, tmp_path / "rows.jsonl", upstream="up@2")
    assert (found.rows, found.new, sum(found.splits.values())) == (2, 2, 2)
    records = list(store.records())
    assert {(one.correction.aligner, one.correction.outcome) for one in records} == {
        ("import:gold", "corrected"),
        ("import:annotated", "approved"),
    }
    assert {one.correction.exchange.upstream for one in records} == {"up@2"}
    assert set(human_triples(records).triples) == set(rows)


def test_importing_again_adds_nothing(store, lines):
    path = lines(
        {"question": "a", "answer": "b", "correction": "c"}, {"question": "a", "answer": "b", "correction": "d"}
    )
    assert import_file(store, path).new == 2
    assert import_file(store, path).new == 0
    assert import_file(store, path, source="annotated").new == 2  # somebody else vouches for them
    assert store.count() == 4


def test_an_import_that_was_cut_short_is_completed(store, lines, monkeypatch):
    path = lines(*({"question": f"q{at}", "answer": "b", "correction": "c"} for at in range(1200)))
    append, left = store.append, iter([True])

    def fail_the_second_time(batch):
        if next(left, None) is None:
            raise StoreError("the disk is full")
        return append(batch)

    monkeypatch.setattr(store, "append", fail_the_second_time)
    with pytest.raises(StoreError):
        import_file(store, path)
    assert store.count() == 500
    monkeypatch.undo()
    assert import_file(store, path).new == 700
    assert store.count() == 1200


def test_a_pipe_is_refused_before_its_rows_are_gone(store):
    reading, writing = os.pipe()
    os.write(writing, b'{"question": "q", "answer": "a", "correction": "b"}\n')
    os.close(writing)
    with pytest.raises(TrainingDataError, match=r"is no file but a pipe .* Nothing was imported"):
        import_file(store, f"/dev/fd/{reading}")
    assert b"question" in os.read(reading, 100)
    os.close(reading)


@pytest.mark.parametrize("row", [PREFERENCE, MESSAGES])
def test_preferences_become_corrections_of_the_rejected_text(store, lines, row):
    import_file(store, lines(row), form="preference")
    (pair,) = build_pairs(store.records()).pairs
    assert (pair.chosen, pair.rejected, pair.turns[-1]) == ("Since.", "No.", USER)


def test_preferences_that_repeat_their_prompt_are_read(store, lines):
    whole = [{"role": "user", "content": "Why?"}]
    row = {"prompt": "Why?"} | {name: [*whole, *MESSAGES[name]] for name in ("chosen", "rejected")}
    import_file(store, lines(row), form="preference")
    (pair,) = build_pairs(store.records()).pairs
    assert (pair.turns, pair.chosen, pair.rejected) == ((USER,), "Since.", "No.")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("{", "it is no JSON"),
        ([], "it is no object but list"),
        ({**PREFERENCE, "prompt": " "}, '"prompt" is empty'),
        ({**PREFERENCE, "chosen": ""}, '"chosen" is empty'),
        ({**PREFERENCE, "chosen": "No."}, '"chosen" and "rejected" are the same'),
        ({**PREFERENCE, "chosen": "\ud800"}, "lone surrogate"),
        ({**PREFERENCE, "chosen": 1}, '"chosen" must be text or a list of messages'),
        ({"chosen": "a", "rejected": "b"}, '"prompt" is missing'),
        ({**PREFERENCE, "prompt": []}, '"prompt" must be text or a list of messages'),
        ({**MESSAGES, "chosen": [{"role": "user", "content": "a"}]}, '"chosen" must be one message of the assistant'),
        ({**MESSAGES, "rejected": MESSAGES["rejected"] * 2}, '"rejected" must be one message of the assistant'),
        ({**MESSAGES, "chosen": [{"role": "assistant", "content": [{"type": "text"}]}]}, '"content" must be text'),
        ({**MESSAGES, "chosen": [{"role": "assistant"}]}, '"content" is missing'),
    ],
)
def test_one_bad_line_leaves_the_store_as_it_was(store, lines, row, problem):
    path = lines(*[PREFERENCE] * 600, row, PREFERENCE)
    with pytest.raises(TrainingDataError, match="line 601: ") as caught:
        import_file(store, path, form="preference")
    assert problem in str(caught.value)
    assert '{"prompt": "...", "chosen": "...", "rejected": "..."}' in str(caught.value)
    assert store.count() == 0


def test_an_identifier_that_no_database_holds_is_refused_before_anything_is_written(store, lines):
    with pytest.raises(StoreError, match="NUL"):
        import_file(store, lines(PREFERENCE), form="preference", upstream="up\0")
    assert store.count() == 0


def test_the_command(tmp_path, lines, capsys):
    url = str(tmp_path / "new.db")
    path = lines(PREFERENCE)
    assert main(["import", "--store", url, "--form", "preference", "--source", "annotated", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["new"]) == (1, 1)
    assert main(["import", "--store", url, "--form", "preference", str(path)]) == 0
    assert "1 rows, 1 of them new" in capsys.readouterr().out
    assert main(["import", "--store", url, str(path)]) == 1
    assert "line 1: " in capsys.readouterr().err
    assert CorrectionStore(url).count() == 2
