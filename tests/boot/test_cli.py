"""`aligner-bootstrap` as it is typed: exit codes, what it prints, and what its errors tell to do."""

from __future__ import annotations

import json
from pathlib import Path

import micro
import pytest

from aligner_chain.aligner import Aligner
from aligner_chain.checkpoint import read_metadata
from aligner_chain.exchange import Exchange
from bootstrap.cli import main
from bootstrap.config import EXAMPLE, read_config
from bootstrap.pairs import write_triples
from bootstrap.registry import Registry
from bootstrap.rounds.ledger import Ledger


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_triples(tmp_path / "rows.jsonl", micro.triples())
    return tmp_path / "rows.jsonl"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base model that has never seen the template's special tokens."""
    tokenizer = micro.tokenizer()
    micro.new_model(tokenizer, seed=0, hidden=32, layers=2).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def train(data: Path, base: Path, out: Path, *options: str) -> int:
    fixed = ["train-aligner", "--data", str(data), "--base", str(base), "--out", str(out), "--steps", "2"]
    return main([*fixed, *options])


COMMANDS = (
    "",
    *("demo", "annotate", "train-aligner", "schedule", "promote", "rollback", "gate explain", "report"),
    *("eval correctors", "eval judge"),
    *(f"round {name}" for name in ("run", "resume", "retry", "status", "list", "abort")),
    *(f"registry {name}" for name in ("list", "verify", "gc", "sync", "export", "push", "pull")),
    *("store status", "store upgrade", "delete", "stats", "feedback", "review", "pairs", "export", "import"),
)


@pytest.mark.parametrize("arguments", [command.split() for command in COMMANDS], ids=COMMANDS)
def test_every_command_has_help_with_an_example(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--help"])
    assert ended.value.code == 0
    assert not arguments or "example:\n  aligner-bootstrap" in capsys.readouterr().out


def test_train_aligner_makes_a_folder_that_corrects(data: Path, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "aligner"
    options = ("--batch", "32", "--learning-rate", "1e-2", "--name", "desk", "--licence", "Apache-2.0")
    assert train(data, base, out, "--steps", "120", *options) == 0
    metadata = read_metadata(out)
    assert (metadata.name, metadata.template, metadata.licence) == ("desk", "aligner-chain/1", "Apache-2.0")
    assert metadata.criteria == ("kind", "right")
    assert metadata.base_model == str(base)
    aligner = Aligner.from_pretrained(str(out))
    corrections = aligner.correct([Exchange.of(q, micro.answer(q, "bad")) for q in micro.questions()[:40]])
    assert sum(one.outcome == "corrected" for one in corrections) > 20
    aligner.close()


def test_a_training_says_how_much_was_learned_and_is_named_by_its_weights(
    data: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--steps", "120", "--batch", "32", "--learning-rate", "1e-2")
    told = {}
    for name, options in (("little", ()), ("again", ()), ("more", more)):
        assert train(data, base, tmp_path / name, *options) == 0
        told[name] = capsys.readouterr().out
    assert "learned too little to be of use. Ways out: more passes (--epochs" in told["little"]
    assert "of the corrections' tokens were right" in told["more"]
    assert "too little" not in told["more"]
    little, again, better = (read_metadata(tmp_path / name) for name in told)
    assert little.version == again.version != better.version
    assert little.data_sha256 == better.data_sha256


def test_train_aligner_with_adapters_writes_whole_weights(data: Path, base: Path, tmp_path: Path) -> None:
    assert train(data, base, tmp_path / "aligner", "--lora", "4") == 0
    assert (tmp_path / "aligner" / "model.safetensors").exists()
    assert not list(tmp_path.glob("aligner/adapter*"))


def test_train_aligner_resumes_only_what_was_begun(
    data: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "aligner"
    assert train(data, base, out, "--save-every", "1") == 0
    assert train(data, base, out) == 2
    assert "--resume" in capsys.readouterr().err
    assert train(data, base, out, "--save-every", "1", "--resume") == 0
    assert train(data, base, out, "--save-every", "1", "--resume", "--learning-rate", "1e-3") == 2
    assert "started with other settings" in capsys.readouterr().err


def test_a_bad_row_is_named(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "q", "answer": "a", "correction": "c"}\n{"question": "q"}\n', encoding="utf-8")
    assert train(bad, base, tmp_path / "out") == 1
    assert "line 2" in capsys.readouterr().err.replace(":2", " line 2")


def test_the_demo_does_not_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "precious").write_text("mine", encoding="utf-8")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_registry_list_and_rollback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry = Registry(tmp_path)
    for _ in range(2):
        aligner = registry.add("aligner", lambda folder: (folder / "weights").write_text("w"), {})
        registry.promote(None, aligner, figures={})
    home = ["--home", str(tmp_path), "--json"]
    assert main(["registry", "list", *home]) == 0
    assert json.loads(capsys.readouterr().out)["served"] == 2
    assert main(["rollback", *home]) == 0
    assert json.loads(capsys.readouterr().out) == {"served": 1, "aligner": "aligner@1", "servers": []}
    assert main(["rollback", *home]) == 1
    assert "no pair to go back to" in capsys.readouterr().err


# --- round.toml ------------------------------------------------------------------------------------------------


def config(folder: Path, text: str) -> Path:
    path = folder / "round.toml"
    path.write_text(text, encoding="utf-8")
    return path


MY_DESK = "".join(f"def {role}(rows):\n    return []\n\n\n" for role in ("judge", "verify", "annotate"))


def test_the_example_is_a_valid_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_desk.py").write_text(MY_DESK, encoding="utf-8")
    (tmp_path / "gold.jsonl").write_text('{"question": "q", "answer": "a", "correction": "c"}\n', encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    read = read_config(config(tmp_path, EXAMPLE))
    assert read.store == str(tmp_path / "corrections.db")
    assert read.launcher.timeout_s == 86400
    assert read.policy.criterion_margin == 0.02
    assert read.dpo.lora == {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    assert read.aligner.warm_up is not None
    assert len(read.gold) == 1


ANSWERED = (
    '{"question": "q", "answer": "a"}\n{"turns": [{"role": "user", "text": "r"}], "answer": "b", "context": ["c"]}\n'
)


def test_a_file_says_all_that_a_round_can_be_made_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_desk.py").write_text(MY_DESK, encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text(ANSWERED, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    text = """
store = "s"
base_aligner = "a"
judge = "my_desk:judge"
verifier = "my_desk:verify"
minimal = "my_desk:annotate"
garbled = "my_desk:annotate"
known_right = "rows.jsonl"
unrelated = "rows.jsonl"
aligner_alone = false
[dpo]
lora = false
[policy]
length_ratio = false
least_length_ratio = false
[aligner]
warm_up = false
lora = {r = 4}
"""
    read = read_config(config(tmp_path, text))
    rows = (Exchange.of("q", "a"), Exchange.of("r", "b", context=("c",)))
    assert (read.known_right, read.unrelated) == (rows, rows)
    assert (read.base_upstream, read.aligner_alone) == (None, False)
    assert (read.dpo.lora, read.policy.length_ratio, read.policy.least_length_ratio) == (None, None, None)
    assert read.aligner.warm_up is None
    assert read.aligner.lora == {"r": 4}
    assert read.yardstick.minimal is read.yardstick.garbled is not None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("store = 1\nnonsense = 2\n", "nonsense, which is not known"),
        ('store = "s"\n', "lacks base_aligner"),
        (
            EXAMPLE.replace("[dpo]", "[dpo]\nlora = true\n[other]", 1).partition("[other]")[0],
            "[dpo] lora is True; it is a table",
        ),
        (
            EXAMPLE.replace("# aligner_alone = false", "aligner_alone = 1"),
            "aligner_alone is 1 and must be true or false",
        ),
        (EXAMPLE.replace("# known_right", "known_right"), "known_right is 'right.jsonl': "),
        (EXAMPLE.replace('# unrelated = "unrelated.jsonl"', 'unrelated = "bad.jsonl"'), "bad.jsonl, line 2: "),
        ("store = \n", "cannot be read as TOML"),
        (EXAMPLE.replace('"corrections.db" ', "1"), "store is 1 and must be text"),
        (EXAMPLE.replace("least_pairs = 50", 'least_pairs = "50"'), "least_pairs is '50' and must be a number"),
        (EXAMPLE.replace("my_desk:judge", "no_such_module:judge"), "does not name a Python object"),
        (EXAMPLE.replace("[dpo]", "[dpo]\nbetta = 1"), "betta, which is not known"),
        (EXAMPLE.replace("my_desk:verify", "my_desk:judge"), "judge and the verifier are the same"),
    ],
)
def test_a_bad_config_is_explained(
    text: str, found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_desk.py").write_text(MY_DESK, encoding="utf-8")
    (tmp_path / "gold.jsonl").write_text('{"question": "q", "answer": "a", "correction": "c"}\n', encoding="utf-8")
    (tmp_path / "bad.jsonl").write_text('{"question": "q", "answer": "a"}\n{"question": "q"}\n', encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["round", "run", "--config", str(config(tmp_path, text))]) == 2
    assert found in capsys.readouterr().err


def test_a_missing_config_is_answered_with_an_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["round", "run", "--config", str(tmp_path / "none.toml")]) == 2
    assert "base_upstream" in capsys.readouterr().err


def test_a_round_is_looked_at_where_its_config_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it a `home` in the file would be no help: the registry of `$ALIGNER_HOME` would be shown."""
    (tmp_path / "my_desk.py").write_text(MY_DESK, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    text = 'home = "mine"\n' + "".join(line for line in EXAMPLE.splitlines(keepends=True) if "gold" not in line)
    Ledger(Registry(tmp_path / "mine").database).plan(config_hash="", parent=1)
    assert main(["round", "list", "--config", str(config(tmp_path, text))]) == 0
    assert "round 1 running" in capsys.readouterr().out
    assert main(["round", "abort", "1", "--config", str(tmp_path / "round.toml")]) == 0
    assert "round 1 aborted" in capsys.readouterr().out
