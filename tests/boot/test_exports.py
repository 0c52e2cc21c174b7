"""Exports: rows that trainers take, a manifest that says what they are, whole or not at all."""

from __future__ import annotations

import hashlib
import itertools
import json
import shlex
import signal
import subprocess
import sys

import pytest

from aligner_chain.exchange import Correction, Exchange, Turn
from bootstrap import CorrectionStore
from bootstrap.cli import main
from bootstrap.errors import ExportError
from bootstrap.pairs import Filters, read_triples
from bootstrap.pairs.exports import export
from bootstrap.pairs.imports import import_file
from bootstrap.pairs.manifests import check
from bootstrap.records import SPLITS, split_of

WORDS = ("red", "blue", "green", "black", "white", "brown", "gold", "grey", "pink", "plum")


@pytest.fixture
def filled(store, make_correction):
    """A hundred corrected answers, twenty right ones, and the same again of other people."""
    for at, (one, other) in enumerate(itertools.product(WORDS, WORDS)):
        question = f"{one} {other} with ü\u2028?"
        store.append([make_correction(question, answer=f"{one} bad", text=f"{one} good", subject=f"person {at % 5}")])
    store.append(
        make_correction(f"right {one} {two}", answer="fine", text="fine") for one in WORDS for two in WORDS[:2]
    )
    return store


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]


def test_a_preference_file_is_what_trl_takes(filled, tmp_path):
    from datasets import load_dataset
    from trl.data_utils import is_conversational, maybe_extract_prompt

    told = export(filled, tmp_path / "out")
    rows = lines(tmp_path / "out" / "preference.jsonl")
    train = [one for one in filled.corrections("train") if one.changed]
    assert len(rows) == told["rows"] == len(train)
    assert rows[0] == {
        "prompt": [{"role": "user", "content": train[0].exchange.question}],
        "chosen": [{"role": "assistant", "content": train[0].text}],
        "rejected": [{"role": "assistant", "content": train[0].exchange.answer}],
    }
    assert (tmp_path / "out" / "ids.txt").read_text().split() == [one.id for one in train]
    data = load_dataset(
        "json", data_files=str(tmp_path / "out" / "preference.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert is_conversational(data[0])
    assert maybe_extract_prompt(data[0]) == rows[0]


def test_prompt_completion_holds_what_is_right_and_what_was_corrected(filled, tmp_path):
    from trl.data_utils import is_conversational

    export(filled, tmp_path / "out", form="prompt-completion")
    rows = lines(tmp_path / "out" / "prompt-completion.jsonl")
    texts = {row["completion"][0]["content"] for row in rows}
    assert "fine" in texts
    assert "red good" in texts
    assert not any("bad" in text for text in texts)
    assert is_conversational(rows[0])
    assert rows[0]["weight"] == 1.0


def test_the_hosted_form(filled, tmp_path):
    export(filled, tmp_path / "out", form="openai-preference")
    row = lines(tmp_path / "out" / "openai-preference.jsonl")[0]
    assert set(row) == {"input", "preferred_output", "non_preferred_output"}
    assert row["input"]["tools"] == []
    assert row["input"]["parallel_tool_calls"] is True
    assert [message["role"] for message in row["input"]["messages"]] == ["user"]
    assert row["preferred_output"] == [{"role": "assistant", "content": "red good"}]
    with pytest.raises(ExportError, match="JSON lines only"):
        export(filled, tmp_path / "other", form="openai-preference", format="parquet")


def test_triples_are_what_somebody_vouches_for_and_come_back(filled, tmp_path):
    with pytest.raises(ExportError, match="nobody vouches for it"):
        export(filled, tmp_path / "none", form="triples")
    assert list(tmp_path.glob("*none*")) == []
    given = [{"question": f"why {word}?", "answer": word, "correction": f"{word}!"} for word in WORDS]
    path = tmp_path / "gold.jsonl"
    path.write_text("\n".join(map(json.dumps, given)))
    import_file(filled, path, source="annotated")
    told = export(filled, tmp_path / "out", form="triples")
    rows = read_triples(tmp_path / "out" / "triples.jsonl")
    assert (
        len(rows)
        == told["rows"]
        == sum(split_of((Turn(role="user", text=f"why {word}?"),)) == "train" for word in WORDS)
    )
    assert {row.source for row in rows} == {"annotated"}


@pytest.mark.parametrize("form", ["preference", "prompt-completion", "triples"])
def test_every_format_holds_the_same_rows(filled, tmp_path, form):
    import pyarrow.parquet
    from datasets import load_from_disk

    given = [{"question": f"why {word}?", "answer": word, "correction": f"{word}!"} for word in WORDS]
    (tmp_path / "gold.jsonl").write_text("\n".join(map(json.dumps, given)))
    import_file(filled, tmp_path / "gold.jsonl")
    for name in ("jsonl", "parquet", "datasets"):
        export(filled, tmp_path / name, form=form, format=name)
    rows = lines(tmp_path / "jsonl" / f"{form}.jsonl")
    assert pyarrow.parquet.read_table(tmp_path / "parquet" / f"{form}.parquet").to_pylist() == rows
    assert load_from_disk(str(tmp_path / "datasets" / "dataset")).to_list() == rows
    assert not (tmp_path / "datasets" / "cache").exists()


def test_the_manifest_says_what_it_is(filled, tmp_path):
    filters = Filters(context_chars=999, off=("near-duplicate",))
    export(filled, tmp_path / "out", filters=filters)
    told = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (told["schema"], told["split"], told["form"], told["format"]) == (1, "train", "preference", "jsonl")
    assert told["filters"]["context_chars"] == 999
    assert told["filters"]["seed"] == 1
    assert told["read"] == told["rows"] + sum(told["dropped"].values()) == filled.count("train")
    assert set(told["files"]) == {"preference.jsonl", "ids.txt"}
    content = (tmp_path / "out" / "preference.jsonl").read_bytes()
    assert told["files"]["preference.jsonl"] == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert {"aligner-chain", "SQLAlchemy"} <= set(told["packages"])
    assert str(filled.path) not in json.dumps(told)
    again = export(filled, tmp_path / "again", filters=filters)
    assert again["files"] == told["files"]


def test_splits_are_never_mixed(filled, tmp_path):
    found = {}
    for split in SPLITS:
        export(filled, tmp_path / split, split=split)
        found[split] = lines(tmp_path / split / "preference.jsonl")
        assert {split_of((Turn(role="user", text=row["prompt"][0]["content"]),)) for row in found[split]} == {split}
    assert sum(map(len, found.values())) == 100


def test_a_folder_with_anything_in_it_is_refused(filled, tmp_path):
    (tmp_path / "out").mkdir()
    export(filled, tmp_path / "out")  # an empty one is taken
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    with pytest.raises(ExportError, match="is there already"):
        export(filled, tmp_path / "out")
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before


def test_rows_that_were_deleted_since_are_found(filled, tmp_path, capsys):
    export(filled, tmp_path / "out")
    manifest, url = tmp_path / "out" / "manifest.json", str(filled.path)
    assert check(manifest, filled).good
    assert main(["export", "--store", url, "--check", str(manifest)]) == 0
    ids = (tmp_path / "out" / "ids.txt").read_text().split()
    gone = {one.id for one in filled.corrections() if one.exchange.subject == "person 1"} & set(ids)
    filled.delete(subject="person 1")
    found = check(tmp_path / "out", filled)
    assert found.deleted == tuple(one for one in ids if one in gone)
    assert len(found.deleted) > 5
    capsys.readouterr()
    assert main(["export", "--store", url, "--check", str(manifest), "--json"]) == 3
    assert set(json.loads(capsys.readouterr().out)["deleted"]) == gone
    export(filled, tmp_path / "new")
    assert not gone & set((tmp_path / "new" / "ids.txt").read_text().split())


def test_files_that_were_changed_are_found(filled, tmp_path):
    export(filled, tmp_path / "out")
    with (tmp_path / "out" / "preference.jsonl").open("a") as file:
        file.write("{}\n")
    assert check(tmp_path / "out", filled).altered == ("preference.jsonl",)
    (tmp_path / "out" / "ids.txt").unlink()
    with pytest.raises(ExportError, match=r"ids\.txt"):
        check(tmp_path / "out", filled)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 1}', '{"schema": 2}', "\xff"])
def test_what_is_no_manifest_is_refused(filled, tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ExportError):
        check(tmp_path / "manifest.json", filled)


def test_a_killed_export_leaves_no_folder(filled, tmp_path):
    script = """
import sys, time
from bootstrap.pairs.exports import export
from bootstrap.store import CorrectionStore
def progress(what, number):
    if what == "reading":
        print("reading", flush=True)
        time.sleep(60)
export(CorrectionStore(sys.argv[1]), sys.argv[2], progress=progress)
"""
    command = [sys.executable, "-c", script, str(filled.path), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.glob(".out.partial-*"))) == 1
    export(filled, tmp_path / "out")
    assert check(tmp_path / "out", filled).good


def test_of_two_exports_into_one_folder_the_second_is_told_so(filled, tmp_path):
    def overtaken(what, number):
        if not (tmp_path / "out").exists():
            export(filled, tmp_path / "out")

    with pytest.raises(ExportError, match=r"is there already\. Name a new folder"):
        export(filled, tmp_path / "out", progress=overtaken)
    assert check(tmp_path / "out", filled).good
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out"]


def test_an_error_leaves_nothing(filled, tmp_path):
    def fail(what, number):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(filled, tmp_path / "out", progress=fail)
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot be written"):
        export(filled, tmp_path / "file" / "out")


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "datasets"])
def test_an_export_without_a_row_is_none(store, tmp_path, kind):
    with pytest.raises(ExportError, match="No row is left of 0 corrections"):
        export(store, tmp_path / "out", format=kind)
    assert not (tmp_path / "out").exists()


def test_a_filter_that_leaves_out_what_somebody_wants_says_how_to_keep_it(tmp_path, capsys):
    store = CorrectionStore(tmp_path / "store.db")
    key = next(str(n) for n in itertools.count() if split_of((), str(n)) == "train")
    asked = Exchange(turns=(Turn(role="user", text="Where is it?"),), answer="I cannot help with that.", split_key=key)
    store.append([Correction(exchange=asked, text="It is in Rome.", outcome="corrected")])
    assert main(["pairs", "--store", str(store.path)]) == 0
    told = capsys.readouterr().out
    assert "1 left out: refusal flip" in told
    assert main(["pairs", "--store", str(store.path), *shlex.split(told.split("leaves out:")[1])]) == 0
    told = capsys.readouterr().out
    assert "make 1 rows" in told
    assert "--filter" not in told


def test_the_commands(filled, tmp_path, capsys):
    url = str(filled.path)
    assert main(["pairs", "--store", url, "--json", "--progress"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["read"] == told["rows"] + sum(told["dropped"].values())
    assert "corrections" in captured.err
    assert main(["export", "--store", url, "--out", str(tmp_path / "out"), "--filter", "off=near-duplicate"]) == 0
    assert f"{told['rows']} rows of" in capsys.readouterr().out
    assert main(["pairs", "--store", url, "--split", "gate", "--form", "prompt-completion"]) == 0
    assert "of the split gate" in capsys.readouterr().out
    for setting in ("typo=1", "context_chars", "context_chars=x", "off=unchanged"):
        assert main(["pairs", "--store", url, "--filter", setting]) == 1
    assert "can be switched off" in capsys.readouterr().err


def test_millions_need_no_more_memory(tmp_path):
    """A sample of the soak test: what 2,500 more records take, in a process of its own."""
    import million

    peaks = []
    for number in (500, 3000):
        million.fill(tmp_path / f"{number}.db", number)
        ran = million.run("export", "--store", tmp_path / f"{number}.db", "--out", tmp_path / f"{number}", "--progress")
        peaks.append(ran.peak_mb)
    assert "reading" in ran.err
    assert peaks[1] - peaks[0] < 30
