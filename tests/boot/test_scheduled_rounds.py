"""The rounds of a schedule are the ledger's: stopped and resumed, given up where they cannot end, one for each fire."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import killing
import pytest

from bootstrap.database.fences import Fence
from bootstrap.registry import Registry
from bootstrap.rounds import Ledger, Rounds
from bootstrap.scheduler.ledger_rounds import LedgerRounds

FIRE = "rounds@2026-11-01T03:00:00Z"


class NoFence:
    """Of a schedule that nobody else has: the rounds have a lease of their own."""

    def check(self, connection: object) -> None:
        return None


@pytest.fixture
def rounds(models: Path, tmp_path: Path) -> Rounds:
    killing.start(tmp_path, models)
    return Rounds(config=killing.config(tmp_path, models), lease_s=1.0)


def run(rounds: Rounds, stop: threading.Event | None = None) -> tuple[str, int | None] | None:
    fence: Fence = NoFence()
    outcome = LedgerRounds(rounds=rounds).run(FIRE, fence=fence, stop=stop or threading.Event())
    return None if outcome is None else (outcome.status, outcome.number)


def test_a_round_that_was_asked_to_stop_is_gone_on_with_and_a_fire_has_one_round(rounds: Rounds) -> None:
    stop, told = threading.Event(), list[str]()

    def watch(stage: str, moment: str) -> None:
        told.append(f"{stage} {moment}")
        if stage == "evaluate_upstream":
            stop.set()

    assert run(replace(rounds, watch=watch), stop) == ("stopped", 1)
    assert told[-1] == "evaluate_upstream committed"
    assert run(replace(rounds, watch=watch)) == ("promoted", 1)
    assert told.count("train_upstream begun") == 1
    assert run(rounds) is None


def test_a_round_that_cannot_end_is_given_up_after_its_tries(rounds: Rounds) -> None:
    def away(corrections: object) -> list[bool]:
        raise ConnectionError("the verifier is away")

    broken = replace(rounds, config=replace(rounds.config, verifier=away, tries=2))
    assert [run(broken) for _ in range(3)] == [("failed", 1)] * 3
    assert run(broken) is None
    registry = Registry(rounds.config.home)
    [ended] = Ledger(registry.database).rounds()
    assert ended.status == "aborted"
    assert "the verifier is away" in ended.reason
    assert not list((registry.home / "rounds").iterdir())


def test_a_round_whose_settings_were_changed_gives_way(rounds: Rounds) -> None:
    stop = threading.Event()
    stop.set()
    assert run(rounds, stop) == ("stopped", 1)
    assert run(replace(rounds, config=replace(rounds.config, seed=7))) == ("failed", 1)
    assert Ledger(Registry(rounds.config.home).database).round(1).status == "aborted"
