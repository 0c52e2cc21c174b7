"""The command `aligner-chain`, with a real model folder and the exit codes that a script relies on."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from aligner_chain.checkpoint import AlignerMetadata, write_metadata
from aligner_chain.cli import BATCH, main
from aligner_chain.doctor import EXTRAS
from aligner_chain.templates.own import FIX, OUTPUT

CORRECTION = "No."
WINDOW = 64
ROOT = Path(__file__).parents[2]


@pytest.fixture
def aligner(prepared: Any, tmp_path: Path) -> Path:
    """The folder of a model that corrects everything to "No.".

    Real weights without training: its one layer adds nothing, an embedding is the token's own unit vector, and the head
    maps each token to the one that follows it.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    size = len(prepared) + len(prepared) % 2
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=size,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=WINDOW,
            eos_token_id=prepared.eos_token_id,
            pad_token_id=prepared.pad_token_id,
        )
    )
    chain = [*prepared.convert_tokens_to_ids([OUTPUT, FIX, *CORRECTION]), prepared.eos_token_id]
    with torch.no_grad():
        for weight in (model.model.layers[0].self_attn.o_proj.weight, model.model.layers[0].mlp.down_proj.weight):
            weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.zero_()
        model.lm_head.weight[chain[1:], chain[:-1]] = 1.0

    folder = tmp_path / "nay"
    model.save_pretrained(folder)
    prepared.save_pretrained(folder)
    write_metadata(folder, AlignerMetadata(name="nay", version="7", template="aligner-chain/1"))
    return folder


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALIGNER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ALIGNER_MODEL", raising=False)


def stdin(monkeypatch: pytest.MonkeyPatch, *rows: object) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(json.dumps(row) + "\n" for row in rows)))


def test_one_answer_is_corrected(aligner: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["correct", "--aligner", str(aligner), "--question", "Is it free?", "--answer", "Yes."]) == 0
    assert capsys.readouterr().out == "No.\n"


def test_a_diff_shows_the_change_in_place_and_why(aligner: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["correct", "--aligner", str(aligner), "--question", "Is it?", "--answer", "Yes.", "--diff"]) == 0
    diff, why = capsys.readouterr().out.splitlines()
    assert diff == "[-Yes-]{+No+}."
    assert "corrected, 1 edit" in why


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_a_terminal_gets_colours_unless_it_asked_for_none(
    no_color: str, coloured: bool, aligner: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["correct", "--aligner", str(aligner), "--question", "Is it?", "--answer", "Yes.", "--diff"]) == 0
    diff = capsys.readouterr().out.splitlines()[0]
    assert diff == ("\x1b[31;9mYes\x1b[0m\x1b[32;4mNo\x1b[0m." if coloured else "[-Yes-]{+No+}.")


def test_json_lines_from_a_file_keep_their_order_beyond_one_batch(
    aligner: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": "?", "answer": "Yes." if n % 2 else "No.", "message_id": f"m{n}"} for n in range(BATCH + 3)]
    path = tmp_path / "answers.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    assert main(["correct", "--aligner", str(aligner), "--file", str(path), "--json"]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["message_id"] for row in shown] == [row["message_id"] for row in rows]
    assert [row["outcome"] for row in shown] == ["corrected" if n % 2 else "approved" for n in range(BATCH + 3)]
    assert shown[1]["edits"] == [{"start": 0, "end": 3, "before": "Yes", "after": "No"}]
    assert {row["text"] for row in shown} == {"No."}
    assert {row["aligner"] for row in shown} == {"nay@7"}


def test_the_configured_aligner_and_stdin_are_the_defaults(
    aligner: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALIGNER_MODEL", str(aligner))
    turns = [{"role": "system", "text": "Be brief."}, {"role": "user", "text": "Is it?"}]
    stdin(monkeypatch, {"turns": turns, "answer": "Yes.", "context": ["It is not."]})
    assert main(["correct"]) == 0
    assert capsys.readouterr().out == "No.\n"


def test_an_audit_takes_the_configured_aligner_and_a_folder(
    aligner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALIGNER_MODEL", str(aligner))
    path = tmp_path / "traffic.jsonl"
    rows = [{"question": "?", "answer": "Yes.", "correction": "No."}, {"question": "?", "answer": "Yes.", "ok": True}]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    assert main(["check", "--audit", str(path), "--corrector", f"folder={aligner}", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["correctors"]
    assert list(shown) == ["aligner", "folder", "copy", "refuse"]
    assert [one["fix"]["fixed"]["count"] for one in shown.values()] == [1, 1, 0, 0]
    assert [one["harm"]["kept"]["count"] for one in shown.values()] == [0, 0, 1, 0]


def test_a_failed_answer_is_printed_as_it_was_and_told_on_stderr(
    aligner: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "Yes " * WINDOW
    stdin(monkeypatch, {"question": "?", "answer": long}, {"question": "?", "answer": "Yes."})
    assert main(["correct", "--aligner", str(aligner)]) == 1
    shown = capsys.readouterr()
    assert shown.out == f"{long}\nNo.\n"
    assert shown.err.startswith("aligner-chain: not corrected: ")


def test_a_failure_in_json_holds_its_error(
    aligner: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin(monkeypatch, {"question": "?", "answer": "Yes " * WINDOW})
    assert main(["correct", "--aligner", str(aligner), "--json"]) == 1
    row = json.loads(capsys.readouterr().out)
    assert (row["outcome"], row["edits"]) == ("failed", [])
    assert row["error"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([], "not a JSON object"),
        ({"question": "?"}, '"answer" is missing'),
        ({"answer": "!"}, "exactly one of"),
        ({"question": "?", "turns": [], "answer": "!"}, "exactly one of"),
        ({"turns": [], "answer": "!"}, '"turns" is not a list'),
        ({"turns": [{"role": "user"}], "answer": "!"}, '"text" is missing'),
        ({"question": "?", "answer": 5}, '"answer" is not a text'),
        ({"question": "?", "answer": "!", "context": "one"}, '"context" is not a list of texts'),
        ({"question": "?", "answer": "!", "contexts": []}, "unknown key 'contexts'"),
    ],
)
def test_a_broken_line_is_named_before_a_model_is_loaded(
    row: object, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin(monkeypatch, {"question": "?", "answer": "!"}, row)
    assert main(["correct", "--aligner", "/no/such/folder"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "stdin, line 2: " in shown.err
    assert said in shown.err


def test_a_mark_before_the_text_is_no_part_of_it(
    aligner: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"question": "?", "answer": "Yes.", "correction": "Yes."}\n', encoding="utf-8-sig")
    assert main(["check", "--replay", str(path)]) == 0
    path.write_text('{"question": "?", "answer": "Yes."}\n', encoding="utf-8-sig")
    assert main(["correct", "--aligner", str(aligner), "--file", str(path)]) == 0
    assert capsys.readouterr().out.endswith("\nNo.\n")


@pytest.mark.parametrize("locale", ["C.UTF-8", "POSIX"])
def test_stdin_is_utf_8_whatever_the_locale_makes_of_it(aligner: Path, locale: str) -> None:
    """A container's locale lets Python take any byte for text, which then would be corrected as it is not."""
    command = [sys.executable, "-m", "aligner_chain.cli", "correct", "--aligner", str(aligner), "--json"]
    row = '{"question": "Größe?", "answer": "Yes."}\n'
    environment = {**os.environ, "LC_ALL": locale}
    marked, latin = (
        subprocess.run(command, input=row.encode(code), capture_output=True, env=environment, timeout=120, check=False)
        for code in ("utf-8-sig", "latin-1")
    )
    assert (marked.returncode, json.loads(marked.stdout)["text"]) == (0, "No.")
    assert (latin.returncode, latin.stdout) == (2, b"")
    assert b"/dev/stdin is not UTF-8 text" in latin.stderr


def test_half_a_character_ends_no_command(aligner: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    half = f"{'Yes ' * WINDOW}\ud83d"
    path.write_text(json.dumps({"question": "?", "answer": half}) + "\n", encoding="utf-8")
    assert main(["correct", "--aligner", str(aligner), "--file", str(path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["text"] == half


def test_what_is_no_json_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text("question,answer\n", encoding="utf-8")
    assert main(["correct", "--file", str(path)]) == 2
    assert "answers.jsonl, line 1: " in capsys.readouterr().err


def test_a_missing_file_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["correct", "--file", str(tmp_path / "none.jsonl")]) == 2
    assert "There is no file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [["--question", "?"], ["--answer", "!"], ["--question", "?", "--answer", "!", "--file", "f"]]
)
def test_half_an_exchange_is_wrong_usage(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["correct", *options]) == 2
    assert "--question and --answer together" in capsys.readouterr().err


def test_a_terminal_without_input_is_told_what_to_give(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    assert main(["correct"]) == 2
    assert "Nothing to correct" in capsys.readouterr().err


def test_no_aligner_configured_names_the_ways_to_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["correct", "--question", "?", "--answer", "!"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("aligner-chain: No Aligner was given")
    assert "aligner-bootstrap demo" in shown.err


def test_a_folder_without_aligner_json_takes_its_template_from_the_option(
    aligner: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in aligner.iterdir():
        if file.name != "aligner.json":
            (bare / file.name).symlink_to(file)
    asked = ["correct", "--aligner", str(bare), "--question", "?", "--answer", "Yes."]
    assert main(asked) == 2
    assert "template" in capsys.readouterr().err
    assert main([*asked, "--template", "aligner-chain/1"]) == 0
    assert capsys.readouterr().out == "No.\n"


def test_the_doctor_finds_nothing_wrong_with_a_served_aligner(
    aligner: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served = {"identity": "nay@7", "path": str(aligner)}
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "served.json").write_text(
        json.dumps({"schema": 1, "pair": "4", "upstream": None, "aligner": served}), encoding="utf-8"
    )
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["pair"], found["aligner"], found["loads"], found["problems"]) == ("4", str(aligner), True, [])
    assert found["home"] == str(tmp_path / "home")
    assert found["extras"]["local"] is True
    assert re.match(r"\d+\.\d+", found["packages"]["torch"])
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "pair 4" in shown
    assert f"{aligner} (loads)" in shown


def test_the_doctor_names_an_aligner_that_does_not_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALIGNER_MODEL", str(tmp_path))
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["loads"] is False
    [problem] = found["problems"]
    assert "does not load" in problem
    assert "aligner.json" in problem


def test_the_doctor_downloads_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ALIGNER_MODEL", "somebody/aligner-7b")
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loads"] is None


def test_the_doctor_says_how_to_get_an_aligner(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 1
    assert "problem: No Aligner was given" in capsys.readouterr().out


def test_the_doctor_says_a_broken_registry_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "served.json").write_text("{", encoding="utf-8")
    assert main(["doctor", "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 1


def test_the_doctor_knows_the_extras_of_the_package() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    names = {extra: {re.split(r"[<>=]", one)[0] for one in needs} for extra, needs in declared.items()}

    def packages(extra: str) -> set[str]:
        inner = [re.fullmatch(r"aligner-chain\[(.+)\]", name) for name in names[extra]]
        others = [one for match in inner if match for one in match[1].split(",")]
        own = {name.partition("[")[0] for name in names[extra] if not name.startswith("aligner-chain[")}
        return own.union(*map(packages, others))

    assert {extra: set(known) for extra, known in EXTRAS.items()} == {extra: packages(extra) for extra in EXTRAS}
    assert set(names) - set(EXTRAS) == {"all", "dev"}


@pytest.mark.parametrize("command", [[], ["correct"], ["check"], ["doctor"]])
def test_help_answers_and_each_command_shows_an_example(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([*command, "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert "usage: aligner-chain" in shown
    assert not command or "example:" in shown


def test_an_unknown_option_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["correct", "--nonsense"])
    assert left.value.code == 2


def test_stderr_is_empty_where_nothing_went_wrong(aligner: Path) -> None:
    command = [sys.executable, "-m", "aligner_chain.cli", "correct", "--aligner", str(aligner)]
    command += ["--question", "?", "--answer", "Yes."]
    user = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=user)
    assert (run.stdout, run.stderr) == ("No.\n", "")


def test_a_reader_that_leaves_early_causes_no_traceback(aligner: Path, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"question": "?", "answer": "Yes."}\n' * (2 * BATCH), encoding="utf-8")
    command = [sys.executable, "-m", "aligner_chain.cli", "correct", "--aligner", str(aligner), "--file", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "No.\n"
        process.stdout.close()
        errors = process.stderr.read()
    assert "Traceback" not in errors
    assert "BrokenPipeError" not in errors


STREAMS = {name: value for name, value in os.environ.items() if name not in ("PYTHONUNBUFFERED", "PYTHONIOENCODING")}


def ran(redirected: str, *typed: str) -> subprocess.CompletedProcess[bytes]:
    """The command in a shell, with streams as `redirected` says."""
    shell = ["sh", "-c", f'exec "$@" {redirected}', "sh", sys.executable, "-m", "aligner_chain.cli", *typed]
    return subprocess.run(shell, capture_output=True, env=STREAMS, timeout=120, check=False)


@pytest.fixture
def replayed(tmp_path: Path) -> Path:
    path = tmp_path / "corrections.jsonl"
    path.write_text('{"question": "?", "answer": "Yes.", "correction": "No."}\n', encoding="utf-8")
    return path


@pytest.mark.parametrize(("typed", "code"), [(["check", "--replay"], 1), (["--help"], 0)], ids=["check", "help"])
def test_a_reader_that_has_gone_before_the_end_is_no_error(replayed: Path, typed: list[str], code: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "aligner_chain.cli", *typed, *([str(replayed)] if "check" in typed else [])]
    run = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=STREAMS, timeout=120, check=False)
    os.close(writing)
    assert (run.returncode, run.stderr) == (code, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_behind_the_output_is_told_once(replayed: Path) -> None:
    run = ran("> /dev/full", "check", "--replay", str(replayed))
    assert run.returncode == 2
    assert run.stderr == b"aligner-chain: The disk of a file is full. Free some space, and run the command again.\n"


def test_closed_streams_are_empty_ones(aligner: Path, replayed: Path) -> None:
    assert (ran("<&-", "correct", "--aligner", str(aligner)).returncode, ran("<&-", "--version").returncode) == (0, 0)
    assert ran(">&-", "check", "--replay", str(replayed)).returncode == 0
    quiet = ran("2>&-", "check", "--replay", str(replayed.with_name("none.jsonl")))
    assert (quiet.returncode, quiet.stdout) == (2, b"")  # an error is no output


def test_json_is_json_whatever_the_output_can_hold(aligner: Path, tmp_path: Path) -> None:
    path, long = tmp_path / "answers.jsonl", f"{'Yes ' * WINDOW}\xe9 \U0001f600 \ud83d"
    path.write_text(json.dumps({"question": "?", "answer": long}) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "aligner_chain.cli", "correct", "--aligner", str(aligner), "--json"]
    run = subprocess.run(
        [*command, "--file", str(path)],
        capture_output=True,
        env={**STREAMS, "PYTHONIOENCODING": "ascii"},
        timeout=120,
        check=False,
    )
    assert json.loads(run.stdout)["text"] == long


def test_a_line_of_broken_json_is_told_with_the_place_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.jsonl").write_text('{"question": \n', encoding="utf-8")
    assert main(["check", "--replay", str(tmp_path / "broken.jsonl")]) == 2
    assert "line 1: it is no JSON (Expecting value, column 14)." in capsys.readouterr().err


@pytest.mark.parametrize("port", ["65536", "-1", "x", "9" * 30])
def test_a_port_that_cannot_be_is_wrong_usage(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--port", port])
    assert ended.value.code == 2
    assert f"'{port}' is no whole number from 0 to 65535" in capsys.readouterr().err
