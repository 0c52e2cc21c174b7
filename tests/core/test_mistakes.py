"""What a newcomer does wrong, in Python and in a shell: each is answered with what was found and what to do instead."""

from __future__ import annotations

import gzip
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aligner_chain import Aligner, Exchange
from aligner_chain.checkpoint import read_metadata
from aligner_chain.cli import main
from aligner_chain.engines.loading import local_folder
from aligner_chain.errors import AlignerNotConfiguredError, CheckpointError, ConfigurationError, MissingExtraError
from aligner_chain.serving import read_served, resolve_aligner
from aligner_chain.shared import as_source

LIST = r"aligner\.correct\(\[Exchange\.of\(question, answer\)\]\)"


@pytest.fixture
def scripted() -> Aligner:
    return Aligner.scripted(lambda exchange: exchange.answer)


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALIGNER_HOME", str(tmp_path / "no-home"))
    monkeypatch.delenv("ALIGNER_MODEL", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "given",
    [Exchange.of("Q?", "A."), "Q?", [("Q?", "A.")], [{"question": "Q?", "answer": "A."}], [None]],
    ids=["one exchange", "a text", "pairs", "dicts", "nothing"],
)
async def test_what_is_corrected_is_a_list_of_exchanges(scripted: Aligner, given: Any) -> None:
    with pytest.raises(TypeError, match=LIST):
        scripted.correct(given)
    with pytest.raises(TypeError, match=LIST):
        await scripted.acorrect(given)


async def test_a_stream_is_of_one_exchange(scripted: Aligner) -> None:
    wrong: Any = ("Q?", "A.")
    with pytest.raises(TypeError, match=LIST):
        next(scripted.stream(wrong))
    with pytest.raises(TypeError, match=LIST):
        await anext(scripted.astream(wrong))


@pytest.mark.parametrize(("question", "answer", "named"), [(None, "A.", "question"), ("Q?", None, "answer")])
def test_an_exchange_is_of_texts(question: Any, answer: Any, named: str) -> None:
    with pytest.raises(TypeError, match=f"The {named} of an Exchange is a text, and this is a NoneType"):
        Exchange.of(question, answer)


@pytest.mark.parametrize("given", ["gpt-5-mini", None], ids=["a name", "nothing"])
def test_a_chat_model_is_made_before_it_corrects(given: Any) -> None:
    with pytest.raises(TypeError, match=r"Aligner\.from_chat_model\(ChatOpenAI\(model=\.\.\.\)\)"):
        Aligner.from_chat_model(given)


def test_a_script_is_a_function() -> None:
    script: Any = "the corrected text"
    with pytest.raises(TypeError, match=r"Aligner\.scripted\(lambda exchange:"):
        Aligner.scripted(script)


@pytest.mark.parametrize("take", [as_source, Aligner.from_pretrained], ids=["corrector", "from_pretrained"])
def test_what_is_no_aligner_is_told_the_ways_to_one(take: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match=r"This object is neither an Aligner nor the name of one(.|\n)*from_chat_model"):
        take(object())


@pytest.mark.parametrize(
    ("name", "face"), [("AlignerCorrector", "langchain"), ("AlignerQueryEngine", "llama_index")], ids=str
)
def test_a_name_of_a_face_is_looked_for_in_the_package(name: str, face: str) -> None:
    with pytest.raises(ImportError, match=f"from aligner_chain.{face} import {name}"):
        exec(f"from aligner_chain import {name}")


def test_the_folder_above_the_home_points_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "demo out"
    (out / "home").mkdir(parents=True)
    monkeypatch.setenv("ALIGNER_HOME", str(out))
    with pytest.raises(AlignerNotConfiguredError) as raised:
        resolve_aligner()
    assert "below it" not in str(raised.value)  # it serves nothing yet
    (out / "home" / "served.json").write_text("{}", encoding="utf-8")
    with pytest.raises(AlignerNotConfiguredError) as raised:
        resolve_aligner()
    [typed] = [line.partition("  ")[2] for line in str(raised.value).splitlines() if "below it" in line]
    assert shlex.split(typed) == ["export", f"ALIGNER_HOME={out / 'home'}"]


def test_a_home_that_is_not_there_is_told_apart_from_one_that_serves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AlignerNotConfiguredError, match=r"serves none \(there is no such folder\)"):
        resolve_aligner()
    (tmp_path / "no-home").mkdir()
    with pytest.raises(AlignerNotConfiguredError, match=r"serves none\. Ways"):
        resolve_aligner()


def test_a_file_is_no_home(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="file is a file, and the folder of a registry is meant"):
        read_served(tmp_path / "file")


def test_a_folder_without_a_model_is_not_taken_for_one_without_a_template(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no model"):
        read_metadata(tmp_path)
    (tmp_path / "config.json").touch()
    with pytest.raises(CheckpointError, match="template="):
        read_metadata(tmp_path)


def test_a_misspelt_folder_is_told_from_a_download_that_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"no folder my-alinger in {tmp_path}, and no model of that name"):
        local_folder("my-alinger")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=rf"no folder my-alinger in {tmp_path}.*aligner-chain\[local\]"):
        local_folder("my-alinger")


@pytest.mark.parametrize(
    ("typed", "answered"),
    [
        ("corect", ("Did you mean correct?", "aligner-chain --help")),
        ("correct --qestion Q? --answer A.", ("Did you mean --question?", "aligner-chain correct --help")),
        ("bench decode --workload edits3", ("Did you mean edits_3?", "aligner-chain bench decode --help")),
        ("correct --xyz", ("unrecognized arguments: --xyz\n", "aligner-chain correct --help")),
        ("", ("required: COMMAND", "aligner-chain --help")),
    ],
    ids=["command", "option", "value", "nothing near", "nothing"],
)
def test_what_is_misspelt_is_answered_with_what_is_near(
    typed: str, answered: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(typed.split())
    told = capsys.readouterr().err
    assert left.value.code == 2
    assert all(text in told for text in answered)
    assert ("Did you mean" in told) == ("Did you mean" in answered[0])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("none.jsonl", "There is no file none.jsonl in "),
        (".", ". is a folder."),
        ("latin.jsonl", "is not UTF-8 text"),
        ("latin.jsonl", "iconv -f latin1 "),
        ("wide.jsonl", "iconv -f utf-16 "),
        ("packed.jsonl.gz", "gunzip -c packed.jsonl.gz"),
        ("deep.jsonl", "deep.jsonl, line 1: it is nested too deeply"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(
    name: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "latin.jsonl").write_bytes('{"question": "Größe?"}'.encode("latin-1"))
    (tmp_path / "wide.jsonl").write_bytes('{"question": "Größe?"}'.encode("utf-16"))
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(b'{"question": "?"}'))
    (tmp_path / "deep.jsonl").write_text("[" * 100_000, encoding="utf-8")
    assert main(["correct", "--file", name]) == 2
    shown = capsys.readouterr().err
    assert told in shown
    assert "Errno" not in shown


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="root may write to all other folders")
def test_a_place_that_the_system_refuses_is_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "Q?", "answer": "A.", "correction": "A."}\n', encoding="utf-8")
    (tmp_path / "mine.py").write_text("def same(exchange):\n    return exchange.answer\n", encoding="utf-8")
    typed = ["check", "--audit", "rows.jsonl", "--corrector", "same=mine:same", "--page", "/proc/audit.html"]
    assert main(typed) == 2
    assert "aligner-chain: /proc/audit.html cannot be used: " in capsys.readouterr().err
