"""Several Aligners as one: each answer goes to the one whose criterion it fails worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from aligner_chain import Aligner, Exchange, Policy
from aligner_chain.errors import CapabilityError, ConfigurationError, EngineError, InspectionError
from aligner_chain.inspectors import CallableInspector

THRESHOLDS = {"true": 0.5, "kind": 0.5}


def scores(exchange: Exchange) -> Mapping[str, float]:
    """Answers say themselves how true and how kind they are, in tenths: "t2 k9"."""
    true, kind = exchange.answer.split()[:2]
    return {"true": int(true[1:]) / 10, "kind": int(kind[1:]) / 10}


class Fixing:
    """Makes a member that puts its own mark into the text, so that one sees who was there and in which order."""

    def __init__(self, **changes: str) -> None:
        self.changes, self.calls = changes, list[list[str]]()

    def __call__(self, exchange: Exchange) -> str:
        true, kind, *rest = exchange.answer.split()
        known = {"true": true, "kind": kind, **self.changes}
        return " ".join([known["true"], known["kind"], *rest, *self.changes])


def squad(stages: int = 1, **members: Any) -> Aligner:
    given = members or {"true": Fixing(true="t9"), "kind": Fixing(kind="k9")}
    aligners = {name: Aligner.scripted(script) for name, script in given.items()}
    return Aligner.squad(aligners, CallableInspector(scores), THRESHOLDS, stages=stages)


def texts(aligner: Aligner, *answers: str) -> list[str]:
    return [one.text for one in aligner.correct([Exchange.of("q", answer) for answer in answers])]


def test_each_answer_has_its_own_order() -> None:
    answers = ["t9 k9", "t2 k9", "t9 k2", "t2 k1", "t1 k2"]
    assert texts(squad(), *answers) == ["t9 k9", "t9 k9 true", "t9 k9 kind", "t2 k9 kind", "t9 k2 true"]
    assert texts(squad(stages=2), *answers)[3:] == ["t9 k9 kind true", "t9 k9 true kind"]
    # Whatever stands beside it.
    assert [texts(squad(stages=2), answer) for answer in answers] == [
        [text] for text in texts(squad(stages=2), *answers)
    ]


def test_an_answer_that_passes_stops() -> None:
    """The member for kindness makes it true as well, so the second stage has nothing to do."""
    both = squad(stages=2, true=Fixing(true="t9"), kind=Fixing(kind="k9", true="t9"))
    assert texts(both, "t2 k1") == ["t9 k9 kind true"]
    [one] = both.correct([Exchange.of("q", "t2 k1")])
    assert (one.outcome, one.criteria, one.scores) == ("corrected", ("kind",), {"true": 0.2, "kind": 0.1})


def test_no_criterion_is_tried_twice() -> None:
    stubborn = squad(stages=5, true=Fixing(true="t1"), kind=Fixing(kind="k9"))
    assert texts(stubborn, "t1 k9") == ["t1 k9 true"]
    [kept] = squad(stages=2, true=lambda exchange: exchange.answer).correct([Exchange.of("q", "t1 k9")])
    assert (kept.outcome, kept.criteria) == ("approved", ())


def test_a_member_that_fails_fails_its_answers_alone() -> None:
    def broken(exchange: Exchange) -> str:
        raise LookupError("no such line")

    failing = squad(stages=2, true=broken, kind=Fixing(kind="k9"))
    wrong, fine = failing.correct([Exchange.of("q", "t1 k9"), Exchange.of("q", "t9 k1")])
    assert isinstance(wrong.error, EngineError)
    assert (wrong.text, fine.text) == ("t1 k9", "t9 k9 kind")


def test_a_member_that_cannot_be_asked_fails_its_answers_alone() -> None:
    unable = Aligner.scripted(Fixing(true="t9")).under(Policy(strength=0.3))  # which needs a score, and there is none
    members: Any = {"true": unable, "kind": Aligner.scripted(Fixing(kind="k9"))}
    both = Aligner.squad(members, CallableInspector(scores), THRESHOLDS, stages=2)
    wrong, fine, right = both.correct([Exchange.of("q", text) for text in ("t1 k9", "t9 k1", "t9 k9")])
    assert isinstance(wrong.error, CapabilityError)
    assert (fine.text, right.outcome) == ("t9 k9 kind", "approved")


@pytest.mark.parametrize("value", [float("nan"), 1.1, -0.1, "low", None])
def test_a_score_that_is_none_lets_no_answer_pass(value: Any) -> None:
    class Odd:
        def inspect(self, exchanges: Sequence[Exchange]) -> list[dict[str, Any]]:
            return [{"true": value} for _ in exchanges]

    odd = Aligner.squad({"true": Aligner.scripted(Fixing(true="t9"))}, Odd(), THRESHOLDS)
    [one] = odd.correct([Exchange.of("q", "t1 k1")])
    assert isinstance(one.error, InspectionError)
    assert "Odd gave 'true' the score" in one.reason


def test_an_inspector_is_never_asked_about_nothing() -> None:
    class Strict:
        def inspect(self, exchanges: Sequence[Exchange]) -> list[Mapping[str, float]]:
            if not exchanges:
                raise ValueError("an empty batch")
            return [scores(exchange) for exchange in exchanges]

    strict = Aligner.squad({"true": Aligner.scripted(Fixing(true="t9"))}, Strict(), THRESHOLDS, stages=3)
    assert texts(strict, "t9 k9") == ["t9 k9"]
    assert texts(strict, "t1 k9") == ["t9 k9 true"]


def test_members_are_called_once_a_stage() -> None:
    seen: list[int] = []

    class Counting:
        identity = "counting@1"

        def __init__(self, inner: Aligner) -> None:
            self.inner = inner

        def correct(self, exchanges: Sequence[Exchange]) -> Any:
            seen.append(len(exchanges))
            return self.inner.correct(exchanges)

    members: Any = {"true": Counting(Aligner.scripted(Fixing(true="t9")))}
    texts(Aligner.squad(members, CallableInspector(scores), THRESHOLDS), *["t1 k9"] * 7, "t9 k9")
    assert seen == [7]


def test_what_a_squad_needs() -> None:
    one: Any = {"true": Aligner.scripted(Fixing(true="t9"))}
    with pytest.raises(ConfigurationError, match=r"no threshold for true.*calibrate"):
        Aligner.squad(one, CallableInspector(scores), {})
    with pytest.raises(ConfigurationError, match="has 0 and 1"):
        Aligner.squad({}, CallableInspector(scores), {})
    with pytest.raises(ConfigurationError, match="has 1 and 0"):
        Aligner.squad(one, CallableInspector(scores), THRESHOLDS, stages=0)
    for threshold in (float("nan"), 5, -0.1):
        with pytest.raises(ConfigurationError, match="from 0 to 1"):
            Aligner.squad(one, CallableInspector(scores), {"true": threshold})
    with pytest.raises(CapabilityError, match=r"members \(true, kind\)"):
        squad().correct([Exchange.of("q", "t1 k1")], criteria=["true"])
    with pytest.raises(CapabilityError, match="no score"):
        squad().inspect([Exchange.of("q", "t1 k1")])
    assert squad().identity == "squad@scripted@1+scripted@1"
