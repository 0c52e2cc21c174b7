"""What is served: which answers the Aligner sees, which of its corrections go out, and what goes out instead."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from aligner_chain import Aligner, Correction, Exchange
from aligner_chain.calibration import Calibration, needed
from aligner_chain.checkpoint import AlignerMetadata
from aligner_chain.checks import Checks
from aligner_chain.engines.scripted import ScriptedEngine
from aligner_chain.errors import ConfigurationError, InspectionError
from aligner_chain.inspectors import CallableInspector
from aligner_chain.policy import Policy

GOOD = Exchange.of("May I return it?", "Yes, within 30 days.")
WRONG = Exchange.of("May I return it?", "Yes, within 90 days.")
LINKED = Exchange.of("Where do I return it?", "See https://example.com/returns for how. It takes 90 days.")
CHECKED = Policy(checks=Checks(links="keep"))
UNCHECKED = Policy(checks=Checks.off())


def fixing(exchange: Exchange) -> str:
    return exchange.answer.replace("90", "30")


def losing_links(exchange: Exchange) -> str:
    return "It takes 30 days."


def scored(**scores: float) -> CallableInspector:
    """Says of answers with 90 days what `scores` say, and of others that they are fine."""
    return CallableInspector(
        lambda exchange: {name: v if "90" in exchange.answer else 1.0 for name, v in scores.items()}
    )


class Seen:
    """A script that notes what it was shown."""

    def __init__(self, script: Callable[[Exchange], str]) -> None:
        self.script, self.answers = script, list[str]()

    def __call__(self, exchange: Exchange) -> str:
        self.answers.append(exchange.answer)
        return self.script(exchange)


def every_way(aligner: Aligner, exchanges: Sequence[Exchange]) -> list[list[Correction]]:
    """The corrections as all four ways to ask give them."""

    async def asynchronous() -> list[list[Correction]]:
        streamed = [[piece async for piece in aligner.astream(one)][-1] for one in exchanges]
        return [await aligner.acorrect(exchanges), streamed]

    streamed: Any = [list(aligner.stream(one))[-1] for one in exchanges]
    return [aligner.correct(exchanges), streamed, *asyncio.run(asynchronous())]


def told(correction: Correction) -> tuple[str, str]:
    return correction.outcome, correction.text


# Checks


def test_a_correction_that_loses_a_link_is_not_served() -> None:
    for policy, expected in ((CHECKED, "kept"), (UNCHECKED, "corrected")):
        for [one] in every_way(Aligner.scripted(losing_links).under(policy), [LINKED]):
            assert one.outcome == expected
            assert (one.text == LINKED.answer) == (expected == "kept")
            assert [finding.check for finding in one.findings] == (["links"] if expected == "kept" else [])
            assert ("link" in one.reason) == (expected == "kept")


def in_pieces(aligner: Aligner, **settings: Any) -> tuple[list[str], Correction]:
    """What a stream hands out whose first text comes while the engine still decodes."""
    engine: Any = aligner.engine
    engine.beats.release(8)
    stream: Any = aligner.stream(LINKED, **settings)
    first = next(stream)
    engine.beats.release(1000)
    *pieces, correction = stream
    return [first, *pieces], correction


def test_a_stream_holds_its_text_until_it_was_checked(playing: Any) -> None:
    aligner = playing("It takes 30 days.").under(CHECKED)
    aligner.engine.beats.release(1000)
    *pieces, kept = aligner.stream(LINKED)
    assert (pieces, kept.outcome) == ([LINKED.answer], "kept")


def test_what_was_streamed_before_the_checks_ran_is_only_warned_of(playing: Any) -> None:
    pieces, served = in_pieces(playing("It takes 30 days.").under(CHECKED), unchecked=True)
    assert ("".join(pieces), *told(served)) == ("It takes 30 days.", "corrected", "It takes 30 days.")
    assert [(one.check, one.action) for one in served.findings] == [("links", "warn")]
    assert "streamed before it was checked" in served.reason


def test_with_nothing_to_check_a_stream_hands_out_as_it_is_decoded(playing: Any) -> None:
    pieces, served = in_pieces(playing("It takes 30 days.").under(UNCHECKED))
    assert len(pieces) > 1
    assert served.outcome == "corrected"


def test_what_a_broken_criterion_may_cost_is_in_the_metadata() -> None:
    may_delete = {"advertising": ("links",)}
    metadata = AlignerMetadata(name="a", version="1", template="scripted", may_delete=may_delete)
    policy = Aligner(
        ScriptedEngine(losing_links), metadata=metadata, policy=Policy(checks=Checks(numbers="off"))
    ).policy
    assert (policy.checks.may_delete, policy.checks.numbers) == (may_delete, "off")


# Before


def test_answers_that_pass_inspection_never_reach_the_aligner() -> None:
    script = Seen(fixing)
    policy = Policy(before=[scored(true=0.2), scored(kind=0.9)], thresholds={"true": 0.5, "kind": 0.5})
    aligner = Aligner.scripted(script).under(policy)
    for good, wrong in every_way(aligner, [GOOD, WRONG]):
        assert (good.outcome, good.reason, good.scores) == ("approved", "it passed inspection", {"true": 1, "kind": 1})
        assert (*told(wrong), wrong.scores) == ("corrected", "Yes, within 30 days.", {"true": 0.2, "kind": 0.9})
    assert set(script.answers) == {WRONG.answer}


@pytest.mark.parametrize("thresholds", [{}, {"true": 0.5}, {"true": 1.0, "kind": 0.5}])
def test_the_gate_is_shut_without_a_threshold_for_every_criterion(thresholds: Mapping[str, float]) -> None:
    script = Seen(fixing)
    policy = Policy(before=[scored(true=0.2, kind=0.9)], thresholds=thresholds)
    assert told(Aligner.scripted(script).under(policy).correct([GOOD])[0]) == ("approved", GOOD.answer)
    assert script.answers == [GOOD.answer]


def calibrated(**changes: Any) -> AlignerMetadata:
    known = {"criterion": "true", "threshold": 0.5, "alpha": 0.1, "delta": 0.05, "n_bad": needed(0.1, 0.05)}
    about = {"n_good": 9, "kept": 0.9, "date": "2026-01-01T00:00:00+00:00", "package_version": "0.1.0"}
    one = Calibration(**{**known, **about, "aligner": "a@1", "upstream": "desk@3", **changes})
    return AlignerMetadata(name="a", version="1", template="scripted", calibrations={"true": one})


@pytest.mark.parametrize(
    ("metadata", "upstream", "opens"),
    [
        (calibrated(), "desk@3", True),
        (calibrated(), "desk@4", False),
        (calibrated(aligner="a@0"), "desk@3", False),
    ],
    ids=["as measured", "another upstream", "another Aligner"],
)
def test_a_calibration_opens_the_gate_for_the_models_it_was_made_with(
    metadata: AlignerMetadata, upstream: str, opens: bool
) -> None:
    script = Seen(fixing)
    aligner = Aligner(ScriptedEngine(script), metadata=metadata, policy=Policy(before=[scored(true=0.2)]))
    aligner.correct([replace(GOOD, upstream=upstream)])
    assert (script.answers == []) == opens


def test_inspectors_run_beside_the_event_loop() -> None:
    threads = set[int]()
    inspector = CallableInspector(lambda exchange: bool(threads.add(threading.get_ident())) or True)
    aligner = Aligner.scripted(fixing).under(Policy(before=[inspector], after=[inspector]))
    asyncio.run(aligner.acorrect([WRONG]))
    assert threads
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("place", ["before", "after"])
def test_an_inspector_that_fails_fails_its_answers(place: str) -> None:
    def broken(exchange: Exchange) -> float:
        raise LookupError("no such score")

    aligner = Aligner.scripted(fixing).under(Policy(**{place: [CallableInspector(broken)]}))
    for wrong, empty in every_way(aligner, [WRONG, Exchange.of("q", "")]):
        assert (*told(wrong), empty.outcome) == ("failed", WRONG.answer, "skipped")
        assert isinstance(wrong.error, InspectionError)
        assert isinstance(wrong.error.__cause__, LookupError)


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("value", [float("nan"), 1.1, -0.1, "high", None])
def test_a_score_that_is_none_opens_nothing(place: str, value: Any) -> None:
    class Odd:
        def inspect(self, exchanges: Sequence[Exchange]) -> list[dict[str, Any]]:
            return [{"kind": value if "90" in one.answer or place == "after" else 0.9} for one in exchanges]

    aligner = Aligner.scripted(fixing).under(Policy(**{place: [Odd()]}, thresholds={"kind": 0.5}))
    for [wrong] in every_way(aligner, [WRONG]):
        assert told(wrong) == ("failed", WRONG.answer)
        assert isinstance(wrong.error, InspectionError)
        assert f"Odd gave 'kind' the score {value!r}" in wrong.reason


def test_an_inspector_that_leaves_answers_out_fails() -> None:
    class Short:
        def inspect(self, exchanges: Sequence[Exchange]) -> list[Mapping[str, float]]:
            return []

    [wrong] = Aligner.scripted(fixing).under(Policy(before=[Short()])).correct([WRONG])
    assert isinstance(wrong.error, InspectionError)
    assert "0 mappings of scores for 1 answers" in wrong.reason


# After


@pytest.mark.parametrize("known", ["answer", "correction", "neither"])
def test_a_correction_that_cannot_be_compared_with_its_answer_is_not_served(known: str) -> None:
    """As with an Aligner for an inspector, which says nothing of an answer that is too long for its window."""

    class Judge:
        def inspect(self, exchanges: Sequence[Exchange]) -> list[Mapping[str, float]]:
            return [{"leave": 0.9} if known == self.kind_of(one) else {} for one in exchanges]

        def kind_of(self, one: Exchange) -> str:
            return "answer" if one.answer == WRONG.answer else "correction"

    for [one] in every_way(Aligner.scripted(fixing).under(Policy(after=[Judge()])), [WRONG]):
        assert told(one) == ("kept", WRONG.answer)
        assert "could not be inspected" in one.reason


@pytest.mark.parametrize(("start", "margin"), [(0.8, 0.1), (0.3, 0.1), (0.9, 0.3)])
def test_a_fall_by_the_margin_is_within_it(start: float, margin: float) -> None:
    inspector = CallableInspector(lambda one: start if "90" in one.answer else round(start - margin, 1))
    for allowed, expected in ((margin, "corrected"), (margin - 0.001, "kept")):
        aligner = Aligner.scripted(fixing).under(Policy(after=[inspector], margin=allowed))
        assert aligner.correct([WRONG])[0].outcome == expected


def test_a_small_fall_can_be_seen_in_the_reason() -> None:
    inspector = CallableInspector(lambda one: 0.5004 if "90" in one.answer else 0.4996)
    [one] = Aligner.scripted(fixing).under(Policy(after=[inspector])).correct([WRONG])
    assert one.reason.endswith("ok fell from 0.5004 to 0.4996")


@pytest.mark.parametrize(("margin", "expected"), [(0.0, "kept"), (0.31, "corrected")])
def test_a_correction_that_inspectors_rate_below_its_answer_is_not_served(margin: float, expected: str) -> None:
    inspector = CallableInspector(lambda exchange: {"kind": 0.9 if "90" in exchange.answer else 0.6})
    aligner = Aligner.scripted(fixing).under(Policy(after=[inspector], margin=margin))
    for [one] in every_way(aligner, [WRONG]):
        assert one.outcome == expected
        assert one.scores == {"kind": 0.9}
        assert ("kind fell from 0.90 to 0.60" in one.reason) == (expected == "kept")


def test_one_criterion_that_falls_is_enough() -> None:
    def rated(exchange: Exchange) -> dict[str, float]:
        fixed = "30" in exchange.answer
        return {"true": 0.9 if fixed else 0.1, "kind": 0.4 if fixed else 0.5}

    aligner = Aligner.scripted(fixing).under(Policy(after=[CallableInspector(rated)]))
    assert aligner.correct([WRONG])[0].outcome == "kept"


def test_an_aligner_can_verify_what_another_wrote(playing: Any) -> None:
    """Its own verdict on the correction is an inspection like any other."""

    class Judge:
        def inspect(self, exchanges: Sequence[Exchange]) -> list[Mapping[str, float]]:
            return [{"keep": 0.9 if "30" in one.answer else 0.1} for one in exchanges]

    assert Aligner.scripted(fixing).under(Policy(after=[Judge()])).correct([WRONG])[0].outcome == "corrected"


# Floor


def test_an_answer_below_the_floor_is_refused_where_no_correction_replaces_it() -> None:
    refusal = {"refusal": "I cannot answer that.", "floor": 0.3}
    keeping = Aligner.scripted(lambda exchange: exchange.answer)
    inspected = Policy(before=[scored(kind=0.2)], **refusal)
    for [one] in every_way(keeping.under(inspected), [WRONG]):
        assert told(one) == ("kept", "I cannot answer that.")
        assert one.changed
        assert "kind is 0.20" in one.reason
    verified = Policy(after=[scored(kind=0.2), scored(true=0.2)], **refusal)
    assert told(Aligner.scripted(fixing).under(verified).correct([WRONG])[0]) == ("corrected", "Yes, within 30 days.")
    assert told(keeping.under(inspected).correct([GOOD])[0]) == ("approved", GOOD.answer)
    close = Policy(before=[CallableInspector(lambda _: 0.2996)], **refusal)
    assert keeping.under(close).correct([WRONG])[0].reason.endswith("ok is 0.2996")


@pytest.mark.parametrize(
    "settings",
    [
        {"margin": 1.5},
        {"thresholds": {"kind": -0.1}},
        {"refusal": "No.", "before": [scored(kind=0.2)]},
        {"floor": 0.5},
        {"refusal": "No.", "floor": 0.5},
        {"before": scored(kind=0.2)},
        {"after": scored(kind=0.2)},
    ],
)
def test_a_policy_that_cannot_work_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Policy(**settings)
