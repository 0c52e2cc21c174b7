"""The command `feedback`, one by one and from a file, and the examples of docs/feedback.md."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import run_examples

from bootstrap.cli import main
from bootstrap.commands.feedback import read_feedback
from bootstrap.errors import RecordError
from bootstrap.records import Feedback

PAGE = Path(__file__).parents[2] / "docs" / "feedback.md"


@pytest.fixture
def say(store, make_correction, capsys):
    """Runs the command on a store of two corrections; returns its exit code, output and errors."""
    store.append([make_correction("a", message_id="m", run_id="r"), make_correction("b", run_id="r")])

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["feedback", "--store", str(store.path), *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def said(store, correction_id="000000") -> list[tuple[object, ...]]:
    return [(one.kind, one.value, one.author) for one in store.get(correction_id).feedback]


def test_all_that_can_be_said(say, store, tmp_path, monkeypatch):
    assert say("--correction", "000000", "--thumb", "down", "--comment", "wrong date", "--author", "ann")[:2] == (
        0,
        "2 written.\n",
    )
    assert say("--message", "m", "--score", "0.5")[0] == 0
    assert say("--run", "r", "--review", "accept")[0] == 0
    (tmp_path / "edit.txt").write_text("- two lines\n@ é\n", encoding="utf-8")
    assert say("--correction", "000000", "--edit", f"@{tmp_path / 'edit.txt'}", "--thumb", "up")[0] == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("@from a pipe\n"))
    assert say("--correction", "000001", "--edit", "-")[0] == 0
    assert sorted(said(store), key=str) == sorted(
        [
            ("thumb", False, "ann"),
            ("comment", "wrong date", "ann"),
            ("score", 0.5, None),
            ("review", True, None),
            ("edit", "- two lines\n@ é", None),
            ("thumb", True, None),
        ],
        key=str,
    )
    assert said(store, "000001") == [("review", True, None), ("edit", "@from a pipe", None)]


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["--correction", "000000"], 2, "--thumb"),
        (["--correction", "000000", "--show", "--thumb", "up"], 2, "one of three"),
        (["--file", "x.jsonl", "--show"], 2, "one of three"),
        (["--correction", "000000", "--edit", " "], 1, "not empty"),
        (["--correction", "000000", "--score", "nan"], 1, "finite"),
        (["--correction", "000000", "--edit", "@missing.txt"], 2, "missing.txt"),
        (["--file", "missing.jsonl"], 2, "missing.jsonl"),
        (["--correction", "nobody", "--show"], 1, "recorded"),
        (["--correction", "", "--thumb", "up"], 1, "what is it about"),
        (["--correction", "a\udcffb", "--thumb", "up"], 1, "cannot be stored"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(say, store, arguments, code, problem):
    found, out, err = say(*arguments)
    assert (found, out) == (code, "")
    assert problem in err
    assert store.feedback_count() == 0


def test_a_mistyped_path_makes_no_store(tmp_path, capsys):
    assert main(["feedback", "--store", str(tmp_path / "none.db"), "--run", "r", "--thumb", "up"]) == 1
    assert not (tmp_path / "none.db").exists()
    assert "none.db" in capsys.readouterr().err


def test_feedback_may_come_before_its_correction_and_not_after_its_deletion(say, store, make_correction):
    code, out, err = say("--message", "later", "--thumb", "up", "--json")
    assert (code, json.loads(out)["written"]) == (0, 1)
    assert "joins it when it comes" in err
    store.append([make_correction("c", message_id="later")])
    assert said(store, "000002") == [("thumb", True, None)]
    store.delete(ids=["000000"])
    assert "0 written. 1 were known already, or are about deleted" in say("--correction", "000000", "--thumb", "up")[1]


def test_show(say, store):
    assert "nothing was said" in say("--correction", "000001", "--show")[1]
    store.add_feedback(
        [
            Feedback(kind="comment", value="\x1b[31mred \ud800\nline", author="ann", correction_id="000000", at_ms=0),
            Feedback(kind="review", value=False, run_id="r", at_ms=10**18),
        ]
    )
    shown = say("--run", "r", "--show")[1]
    assert shown.splitlines() == [
        "000000 (corrected)",
        "  1970-01-01 00:00:00  comment  \\x1b[31mred \\ud800",
        "    line by ann",
        "  1000000000000000000 ms  review   reject",
        "000001 (corrected)",
        "  1000000000000000000 ms  review   reject",
    ]
    found = json.loads(say("--correction", "000000", "--show", "--json")[1])
    assert [one["value"] for one in found[0]["feedback"]] == ["\x1b[31mred \ud800\nline", False]


def test_a_file_is_written_whole_and_once(say, store, tmp_path):
    file = tmp_path / "said.jsonl"
    rows = [
        {"kind": "thumb", "value": False, "message_id": "m", "id": "f-1", "at_ms": 1, "author": None},
        {"kind": "edit", "value": "better \ud800", "correction_id": "000001", "id": "f-2", "at_ms": 2, "author": "ann"},
    ]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    assert json.loads(say("--file", file, "--json")[1]) == {"given": 2, "written": 2, "ids": ["f-1", "f-2"]}
    assert say("--file", file)[1].startswith("0 written. 2 were known already")
    assert said(store) == [("thumb", False, None)]
    assert said(store, "000001") == [("edit", "better \ud800", "ann")]


def test_every_bad_line_of_a_file_is_told_and_none_is_written(say, store, tmp_path):
    good = '{"kind": "thumb", "value": true, "run_id": "r"}'
    bad = {
        "not JSON": "it is no JSON (Expecting value, column 1)",
        '{"kind": "thumb", "value": ': "it is no JSON (Expecting value, column 28)",
        "[1]": "not a JSON object",
        '{"kind": "thumb"}': '"value" is missing',
        '{"kind": "thumb", "value": 1, "run_id": "r"}': "True (up) or False (down)",
        '{"kind": "like", "value": true, "run_id": "r"}': "one of thumb",
        '{"kind": "thumb", "value": true}': "what is it about",
        '{"kind": "thumb", "value": true, "run": "r"}': "unknown field 'run'",
        '{"kind": "thumb", "value": true, "run_id": 7}': '"run_id" is not a text',
        '{"kind": "thumb", "value": true, "run_id": "r", "at_ms": true}': '"at_ms" is not a whole number',
        '{"kind": "thumb", "value": true, "run_id": "r", "id": null}': '"id" is not a text',
        '{"kind": "thumb", "value": true, "run_id": "a\\u0000b"}': "NUL",
        '{"kind": "thumb", "value": true, "run_id": "\\ud800"}': "cannot be stored",
        '{"kind": "score", "value": NaN, "run_id": "r"}': "finite",
        '{"kind": "thumb", "value": true, "run_id": "r", "at_ms": 99999999999999999999}': "at_ms",
        "[" * 100_000: "",
    }
    file = tmp_path / "said.jsonl"
    file.write_text("\n".join([good, *bad, good]), encoding="utf-8")
    code, out, err = say("--file", file)
    assert (code, out, store.feedback_count()) == (1, "", 0)
    told = err.splitlines()[1:]
    assert len(told) == len(bad)
    for number, (line, problem) in enumerate(zip(told, bad.values(), strict=True), 2):
        assert line.startswith(f"line {number}: ")
        assert problem in line


VALUES = st.one_of(st.booleans(), st.integers(), st.floats(), st.text(), st.none(), st.lists(st.integers()))
ROWS = st.dictionaries(st.sampled_from(["id", "kind", "value", "run_id", "author", "at_ms", "x"]), VALUES)


@given(st.lists(st.one_of(st.text(), VALUES.map(json.dumps), ROWS.map(json.dumps)), max_size=4))
def test_any_file_is_read_or_refused(rows):
    with contextlib.suppress(RecordError):
        said = read_feedback(rows, "file")
        assert len(said) == sum(1 for row in rows if row.strip())


def test_texts_are_redacted_before_they_are_written():
    rows = [json.dumps({"kind": "comment", "value": "secret", "run_id": "r"})]
    redacted = read_feedback(rows, "file", lambda one: Feedback(kind=one.kind, value="[KEY]", run_id=one.run_id))
    assert [one.value for one in redacted] == ["[KEY]"]


def test_the_examples_of_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_examples(PAGE)
    assert capsys.readouterr().out.splitlines() == [
        "You can return it within 30 days.",
        "2",
        "review False",
        "Progress(total=1, accepted=1, rejected=0, edited=0)",
    ]


def test_the_commands_of_the_page_run(store, make_correction, tmp_path, monkeypatch, capsys):
    store.append([make_correction("q", message_id="msg-7f2a")])
    (tmp_path / "edit.txt").write_text("You can return it within 30 days.\n", encoding="utf-8")
    row = {"kind": "thumb", "value": True, "run_id": "run-1"}
    (tmp_path / "said.jsonl").write_text(json.dumps(row), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^aligner-bootstrap (feedback .*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        words = re.findall(r"'[^']*'|\S+", command)
        assert main([word.strip("'").replace("01a2022e-6622-7378-ae42-a5ded3ddf68a", "000000") for word in words]) == 0
    assert len(said(store)) == 4
    capsys.readouterr()
