"""A whole round on models that are really trained, and what happens when a step cannot go on."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import micro
import pytest
from completions_server import CompletionsServer

from aligner_chain.aligner import Aligner
from aligner_chain.engines.base import Sampling
from aligner_chain.engines.huggingface import HuggingFaceEngine
from aligner_chain.errors import ConfigurationError
from aligner_chain.exchange import Correction, Exchange
from aligner_chain.serving import read_served
from bootstrap.aligner_training import AlignerTrainingSettings
from bootstrap.answering import Answering
from bootstrap.cli import main
from bootstrap.errors import NotEnoughPairsError, RegistryError, StageError
from bootstrap.evaluation import GatePolicy
from bootstrap.judges import RuleJudge
from bootstrap.measures import Yardstick
from bootstrap.registry import Registry, Servers
from bootstrap.rounds import STAGE_NAMES, Ledger, RoundConfig, Rounds, register_start, run_round
from bootstrap.rounds.aligner_stages import BETTER_ALONE, UPSTREAM_ALONE
from bootstrap.store import CorrectionStore
from bootstrap.upstream import DPOSettings

LENIENT = GatePolicy(criterion_margin=0.5, refusal_margin=0.5, damaged=0.5, length_ratio=None)
"""So small a world has two dozen gate prompts, and a chance answer more or less is 4 points."""


@pytest.fixture
def config(models: Path, tmp_path: Path) -> RoundConfig:
    return micro.round_config(
        models,
        tmp_path,
        annotator=micro.annotate,
        gold=tuple(micro.triples()),
        known_right=tuple(Exchange.of(q, micro.answer(q, "good")) for q in micro.questions()),
        answering=Answering(sampling=Sampling(temperature=1.0), max_new=16),
        dpo=DPOSettings(epochs=6, batch=16, learning_rate=2e-3, lora=None, extra=micro.FAST),
        aligner=AlignerTrainingSettings(warm_up=None, correction=micro.settings(30)),
        policy=LENIENT,
        pair_margin=0.5,
        margin=0.5,
        least_pairs=20,
    )


def collect(config: RoundConfig) -> None:
    """Live traffic over all questions: answered by the base upstream, corrected, stored."""
    prompts = [Exchange.of(question, "") for question in micro.questions()]
    answers = config.answering.answer_from(config.base_upstream, prompts, upstream="upstream@1")
    with (
        contextlib.closing(Aligner.from_pretrained(str(config.base_aligner))) as aligner,
        contextlib.closing(CorrectionStore(config.store)) as store,
    ):
        store.append(aligner.correct(answers))


def test_a_round_makes_the_upstream_better_and_promotes_the_pair(config: RoundConfig) -> None:
    collect(config)
    start, gates = register_start(config)
    assert [gate.passed for gate in gates] == [True, True]
    said: list[str] = []
    result = run_round(config, say=said.append)
    assert result.status == "promoted", "\n".join(said)
    upstream_gate = result.gates[0]
    assert upstream_gate.name == "better than what is served"
    assert upstream_gate.figure > 0.65
    assert result.pair is not None
    assert result.pair.number != start.number
    data = result.pair.aligner.manifest["data"]
    assert sum(data["sources"].values()) == data["rows"] > 0
    served = read_served(config.home)
    assert served is not None
    assert Path(served.aligner.path) == result.pair.aligner.path
    [round_] = Ledger(Registry(config.home).database).rounds()
    assert (round_.status, round_.pair) == ("promoted", result.pair.number)
    assert [stage.stage for stage in round_.stages] == list(STAGE_NAMES)
    assert not list((Path(config.home or "") / "rounds").iterdir())


def test_a_candidate_that_is_no_better_is_refused_and_the_served_pair_stays(config: RoundConfig) -> None:
    collect(config)
    start, _ = register_start(config)
    no_better = replace(config, dpo=replace(config.dpo, learning_rate=1e-9, epochs=1.0), aligner_alone=False)
    result = run_round(no_better)
    assert result.status == "held"
    assert result.gates[0].decision == "hold"
    again = run_round(no_better)
    assert (again.status, again.gates) == ("skipped", ())
    assert "its pairs are those of round 1" in again.reason
    served = Registry(config.home).served()
    assert served is not None
    assert served.number == start.number


def test_where_the_candidate_upstream_is_refused_the_aligner_alone_is_tried(
    config: RoundConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    collect(config)
    start, _ = register_start(config)
    result = run_round(replace(config, dpo=replace(config.dpo, learning_rate=1e-9, epochs=1.0)))
    names = [gate.name for gate in result.gates]
    assert result.gates[0].decision == "hold"
    assert BETTER_ALONE in names
    assert "Aligner on the new upstream" not in names
    # The served Aligner repairs nearly all: a new one cannot be shown to be better on two dozen prompts.
    assert result.status == "held"
    assert "the candidate upstream was held" in result.reason
    registry = Registry(config.home)
    kept, served = registry.pairs()[-1], registry.served()
    assert served is not None
    assert (served.number, kept.upstream) == (start.number, start.upstream)
    assert kept.aligner.number == 2
    way = f"It is kept as pair {kept.number}; to serve it all the same:  aligner-bootstrap promote {kept.number}"
    assert result.reason.splitlines()[1:] == [way]
    assert main(["round", "status", "--home", str(config.home)]) == 0
    assert f"  {way}\n" in capsys.readouterr().out
    [one] = Ledger(registry.database).rounds()
    assert one.result("evaluate_upstream").keys() >= {"before", "after"}
    assert one.result("regenerate")["answers"]
    assert "served_on_new" not in one.result("evaluate_pair")


def test_where_only_the_candidate_aligner_is_refused_the_new_upstream_is_served_with_the_old_one(
    config: RoundConfig,
) -> None:
    collect(config)
    start, _ = register_start(config)
    result = run_round(replace(config, margin=0.001))  # can never be shown on two dozen prompts
    assert result.status == "promoted"
    assert result.reason.startswith("the upstream alone, the candidate Aligner was held")
    registry = Registry(config.home)
    served = registry.served()
    assert served is not None
    assert served.upstream is not None
    assert (served.aligner, served.upstream.number) == (start.aligner, 2)
    [one] = Ledger(registry.database).rounds()
    measured = one.result("evaluate_pair")
    assert served.figures["with_aligner"] == measured["served_on_new"]["with_aligner"]
    decisions = {gate.name: gate.decision for gate in result.gates}
    assert decisions[UPSTREAM_ALONE] == "promote"
    assert decisions["Aligner on the new upstream"] == "hold"


def test_a_round_waits_for_a_server_of_its_aligner_where_the_served_one_is_on_a_server(config: RoundConfig) -> None:
    collect(config)
    start, _ = register_start(config)
    registry = Registry(config.home)
    engine = HuggingFaceEngine.from_pretrained(start.aligner.path, dtype="float32", device="cpu")
    with contextlib.closing(engine), CompletionsServer(engine, model=start.aligner.identity) as server:
        servers = Servers(urls=(server.url,), home=str(registry.home))
        registry.promote(start, servers=servers)
        with pytest.raises(StageError, match=r"(?s)aligner@2 is a whole model.*Pair 1 is still served"):
            run_round(config)
        assert registry.served() == start
        registry.promote(registry.pair("challenger"), servers=servers)
        result = Rounds(config=config).resume()
    assert result is not None
    assert (result.status, result.pair) == ("promoted", registry.served())
    assert registry.served() != start


def test_too_few_pairs_train_nothing(config: RoundConfig) -> None:
    collect(config)
    register_start(config)
    with pytest.raises(NotEnoughPairsError, match="Collect more"):
        run_round(replace(config, least_pairs=10_000))


def test_without_a_served_pair_the_error_names_the_way(config: RoundConfig) -> None:
    with pytest.raises(RegistryError, match="round run --start"):
        run_round(config)


def test_an_aligner_no_better_than_copying_is_not_registered(config: RoundConfig, models: Path) -> None:
    collect(config)
    blind = replace(config, yardstick=Yardstick(judge=lambda exchanges: [{"any": True} for _ in exchanges]))
    with pytest.raises(RegistryError, match="no better than doing nothing"):
        register_start(blind)
    assert Registry(config.home).served() is None


def test_a_failing_judge_is_a_failed_stage_and_changes_nothing(config: RoundConfig) -> None:
    collect(config)
    start, _ = register_start(config)

    def broken(corrections: object) -> list[bool]:
        raise ValueError("the verifier is away")

    with pytest.raises(StageError, match=r"(?s)the verifier is away.*still served"):
        run_round(replace(config, verifier=broken))
    served = Registry(config.home).served()
    assert served is not None
    assert served.number == start.number


def test_held_out_prompts_are_in_no_training_set(config: RoundConfig) -> None:
    collect(config)
    register_start(config)
    trained: list[Correction] = []

    def spy(corrections: list[Correction]) -> list[bool]:
        trained.extend(corrections)
        return micro.verify(corrections)

    better = RuleJudge({"good": lambda one: one.answer == micro.answer(one.question, "good")})
    result = run_round(replace(config, verifier=spy, preference=better))
    assert result.gates[0].passed
    with contextlib.closing(CorrectionStore(config.store)) as store:
        held_out = {one.question for split in ("gate", "report") for one in store.prompts(split)}
    assert trained
    assert not held_out & {one.exchange.question for one in trained}


def test_a_base_that_is_not_there_is_told_before_a_round_is_begun(config: RoundConfig) -> None:
    with pytest.raises(ConfigurationError, match=r"base_upstream is .* no such folder"):
        run_round(replace(config, base_upstream=config.base_upstream / "none"))
    assert not Ledger(Registry(config.home).database).rounds()
