"""Rounds on a team's own data and models: long prompts, another family of base, nothing held out, what was deleted since."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import micro
import pytest

from aligner_chain.engines.base import Sampling
from aligner_chain.errors import ConfigurationError
from aligner_chain.exchange import Correction, Exchange, edits_between
from bootstrap.aligner_training import AlignerTrainingSettings
from bootstrap.answering import Answering
from bootstrap.cli import main
from bootstrap.demo.models import new_model, new_tokenizer
from bootstrap.errors import JudgeError, RegistryError, RoundChangedError, RoundError, StageError
from bootstrap.measures import Yardstick
from bootstrap.records import split_of
from bootstrap.registry import PairVersion, Registry
from bootstrap.rounds import RoundConfig, Rounds, register_start, run_round
from bootstrap.rounds.running import abort
from bootstrap.store import CorrectionStore
from bootstrap.upstream import DPOSettings


@pytest.fixture
def config(models: Path, tmp_path: Path) -> RoundConfig:
    return micro.round_config(
        models,
        tmp_path,
        answering=Answering(sampling=Sampling(), max_new=8),
        dpo=DPOSettings(steps=1, lora=None),
        aligner=AlignerTrainingSettings(warm_up=None, correction=micro.settings(1)),
        least_pairs=10,
    )


def collect(config: RoundConfig, questions: Sequence[str], **exchange: Any) -> list[str]:
    """Collects a correction for each question, every tenth of them an approval, and returns the ids of these."""
    approved = []
    with contextlib.closing(CorrectionStore(config.store)) as store:
        for number, question in enumerate(questions):
            answer, good = micro.answer(question, "bad" if number % 10 else "good"), micro.answer(question, "good")
            correction = Correction(
                exchange=replace(Exchange.of(question, answer), **exchange),
                text=good,
                outcome="approved" if answer == good else "corrected",
                edits=edits_between(answer, good),
            )
            store.append([correction])
            approved += [correction.id] if answer == good else []
    return approved


def serve_base(config: RoundConfig) -> PairVersion:
    """Serves the base pair, whatever it is worth."""
    registry = Registry(config.home)
    saved = [
        registry.add(kind, lambda folder, source=source: _copied(source, folder), {"base": "base"})
        for kind, source in (("upstream", config.base_upstream), ("aligner", config.base_aligner))
    ]
    return registry.promote(*saved, figures={})


def _copied(source: Path, folder: Path) -> None:
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())


def train_key() -> str:
    """A split key whose prompts are all trained on."""
    keys: Iterator[str] = map(str, itertools.count())
    return next(key for key in keys if split_of(Exchange.of("", "").turns, key) == "train")


def test_without_a_held_out_prompt_nothing_is_trained_and_the_reason_is_told(config: RoundConfig) -> None:
    collect(config, micro.questions()[:40], split_key=train_key())
    with pytest.raises(RegistryError, match=r"no held-out prompt was collected.*\n.*split_key"):
        register_start(config)
    serve_base(config)
    result = run_round(config)
    assert result.status == "skipped"
    assert "no held-out prompt was collected" in result.reason


def test_a_prompt_that_the_window_has_no_room_for_is_left_unanswered_and_stops_nobody(models: Path) -> None:
    answering, upstream = Answering(sampling=Sampling(), max_new=8), models / "upstream"
    asked = [Exchange.of(text, "") for text in (micro.questions()[0], "say " + "tea " * 2000, "say " + "tea " * 375)]
    alone = answering.answer_from(upstream, asked[:1], upstream="upstream@1")
    found = answering.answer_from(upstream, asked, upstream="upstream@1")
    assert found[0] == alone[0]
    assert found[0].answer
    assert (found[1].answer, found[1].upstream) == ("", "upstream@1")
    assert len(found[2].answer.split()) < 8


def test_a_base_of_another_family_than_what_is_served_is_judged_by_its_answers(
    config: RoundConfig, tmp_path: Path
) -> None:
    collect(config, micro.questions())
    serve_base(config)
    made = new_tokenizer([*micro.questions(), "words that the served upstream never saw are here as well"])
    new_model(made, seed=3, hidden=32, layers=1).save_pretrained(tmp_path / "other")
    made.save_pretrained(tmp_path / "other")
    said: list[str] = []
    result = run_round(replace(config, base_upstream=tmp_path / "other", aligner_alone=False), say=said.append)
    assert result.status in ("held", "rejected")
    assert any("do not read texts as the same tokens" in line for line in said)
    assert "chosen_fallen" not in [gate.name for gate in result.gates]
    assert "repetition" in [gate.name for gate in result.gates]


def test_a_round_is_not_resumed_once_a_mere_prompt_of_it_was_deleted(config: RoundConfig) -> None:
    approved = collect(config, micro.questions())
    serve_base(config)

    def away(corrections: object) -> list[bool]:
        raise ValueError("the verifier is away")

    with pytest.raises(StageError, match="the verifier is away"):
        run_round(replace(config, verifier=away))
    with contextlib.closing(CorrectionStore(config.store)) as store:
        store.delete(ids=approved[:1])
    with pytest.raises(RoundChangedError, match="1 of the corrections that round 1 was begun with were deleted since"):
        Rounds(config=replace(config, verifier=away)).resume()


def test_what_a_process_writes_after_its_round_was_given_up_is_removed_as_well(config: RoundConfig) -> None:
    collect(config, micro.questions())
    serve_base(config)
    rounds = Path(config.home or "") / "rounds"

    def judge(exchanges: Sequence[Exchange]) -> list[dict[str, bool]]:
        abort(Registry(config.home), 1, "somebody else gives it up")
        assert not list(rounds.iterdir())
        (rounds / "1" / "train_upstream.work").mkdir(parents=True)  # as a training does that still runs
        return micro.judge(exchanges)

    with pytest.raises(RoundError, match=r"has ended \(aborted\)"):
        run_round(replace(config, yardstick=Yardstick(judge=judge)))
    assert not list(rounds.iterdir())


def test_two_starts_at_once_serve_one_pair(config: RoundConfig) -> None:
    collect(config, micro.questions())
    other: list[PairVersion] = []

    def judge(exchanges: Sequence[Exchange]) -> list[dict[str, bool]]:
        other.extend([] if other else [serve_base(config)])  # another process was quicker
        return micro.judge(exchanges)

    with pytest.raises(RegistryError, match="pair 1 is served and none was expected"):
        register_start(replace(config, yardstick=Yardstick(judge=judge)))
    assert Registry(config.home).served() == other[0]


def test_a_judge_that_fails_at_the_start_is_told_with_its_line(config: RoundConfig) -> None:
    collect(config, micro.questions())

    def judge(exchanges: Sequence[Exchange]) -> list[dict[str, bool]]:
        raise ConnectionError("the judge is away")

    with pytest.raises(
        JudgeError, match=r"not registered.*ConnectionError: the judge is away .*test_own_rounds\.py, line"
    ):
        register_start(replace(config, yardstick=Yardstick(judge=judge)))
    assert Registry(config.home).served() is None


def test_an_adapter_is_no_base(config: RoundConfig, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"(?s)base_upstream is .*which is an adapter.*merge_and_unload"):
        run_round(replace(config, base_upstream=tmp_path / "adapter"))


def written(config: RoundConfig, folder: Path, *, judge: str) -> Path:
    """The `round.toml` of a short round."""
    lines = {"store": config.store, "home": config.home, "base_upstream": config.base_upstream}
    lines |= {"base_aligner": config.base_aligner, "judge": judge, "verifier": "micro:verify"}
    settings = "".join(f'{name} = "{value}"\n' for name, value in lines.items()) + "least_pairs = 10\n"
    tables = "[dpo]\nsteps = 1\nlora = false\n[answering]\nmax_new = 8\n[launcher]\nin_process = true\n"
    file = folder / "round.toml"
    file.write_text(
        settings + tables + "[aligner]\nwarm_up = false\n[aligner.correction]\nsteps = 1\n", encoding="utf-8"
    )
    return file


def test_a_refused_round_says_where_its_gates_are_explained(
    config: RoundConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    collect(config, micro.questions())
    serve_base(config)
    assert main(["round", "run", "--config", str(written(config, tmp_path, judge="micro:judge"))]) == 3
    way = f"aligner-bootstrap gate explain --home {config.home}"
    assert f"What each gate found and needs:  {way}\n" in capsys.readouterr().out
    assert main(way.split()[1:]) == 0
    assert "required" in capsys.readouterr().out


def test_ctrl_c_says_how_to_go_on(
    config: RoundConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    collect(config, micro.questions())
    serve_base(config)
    (tmp_path / "interrupted_desk.py").write_text(
        "def judge(exchanges):\n    raise KeyboardInterrupt\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    file = written(config, tmp_path, judge="interrupted_desk:judge")
    assert main(["round", "run", "--config", str(file)]) == 130
    told = capsys.readouterr().err
    assert "The round was broken off; what was served still is." in told
    assert "aligner-bootstrap round resume" in told
    assert main(["round", "status", "--config", str(file)]) == 0
    assert "round 1 running" in capsys.readouterr().out
