"""What a corrector may ask of its Aligner: criteria, a strength, and a policy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk
from pydantic import ValidationError

from aligner_chain import Aligner, Checks, Correction, Exchange, Policy
from aligner_chain.inspectors import CallableInspector
from aligner_chain.langchain import AlignedChatModel, AlignerCorrector
from aligner_chain.shared import configured

ASKED: Any = {"question": "Where do I return it?", "answer": "See https://example.com/returns or go away."}


def losing_links(exchange: Exchange) -> str:
    return "Ask at the desk."


def outcomes(corrector: AlignerCorrector) -> tuple[str, str]:
    message = corrector.invoke(ASKED)
    return message.response_metadata["aligner"]["outcome"], message.text


def test_what_the_default_checks_guard_is_guarded_in_a_chain() -> None:
    aligner = Aligner.scripted(losing_links)
    assert outcomes(AlignerCorrector(aligner)) == ("kept", ASKED["answer"])
    free = AlignerCorrector(aligner, policy=Policy(checks=Checks.off()))
    assert outcomes(free) == ("corrected", "Ask at the desk.")


async def test_answers_that_pass_inspection_are_served_as_they_are() -> None:
    gate = Policy(before=[CallableInspector(lambda exchange: "away" not in exchange.answer)], thresholds={"ok": 0.5})
    told: list[Correction] = []
    corrector = AlignerCorrector(Aligner.scripted(losing_links), policy=gate, on_correction=told.append)
    fine = AIMessage("Come again.", id="1")
    results = await corrector.abatch([{**ASKED, "answer": fine}, ASKED])
    assert [one.outcome for one in told] == ["approved", "kept"]
    assert results[0].text == "Come again."


def test_criteria_and_strength_go_to_the_aligner(playing: Any) -> None:
    aligner = playing("Ask at the desk.")
    aligner.engine.beats.release(10_000)
    corrector = AlignerCorrector(aligner, criteria=["kind"], strength=0.9)
    corrector.invoke(ASKED)
    list(corrector.stream(ASKED))
    for request in aligner.engine.submitted[-2:]:
        assert request.criteria == ("kind",)
        assert max(request.bias.values()) == pytest.approx(2.197, abs=1e-3)
    assert AlignerCorrector(aligner, strength=0.0).invoke(ASKED).text == ASKED["answer"]
    # A policy keeps what the corrector does not say.
    both = configured(aligner, Policy(strength=0.2, checks=Checks.off()), ("kind",), None)
    assert (both.policy.strength, both.policy.criteria, both.policy.checks) == (0.2, ("kind",), Checks.off())
    with pytest.raises(ValidationError, match="strength"):
        AlignerCorrector(aligner, strength=1.5)


async def test_every_answer_has_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Also one that the Aligner never saw, or whose correction the corrector refused: there the last line holds."""
    caplog.set_level("INFO", logger="aligner_chain.decisions")
    aligner = Aligner.scripted(lambda exchange: '{"mood": 3}')
    corrector = AlignerCorrector(aligner, structured="validate", question="q")
    await corrector.abatch(['{"mood": "grumpy"}', ""])
    lines = [record.decision for record in caplog.records]  # type: ignore[attr-defined]
    assert [line["outcome"] for line in lines] == ["skipped", "corrected", "kept"]
    assert lines[1]["id"] == lines[2]["id"]
    assert "grumpy" not in caplog.text


async def test_what_an_upstream_thinks_aloud_stays_as_it_is(models: SimpleNamespace) -> None:
    mending = Aligner.scripted(lambda exchange: exchange.answer.replace("bad", "good"))
    corrector = AlignerCorrector(mending, policy=Policy(thoughts=True))
    for answer in ("<think>\nbad?\n</think>\n\nA bad one.", "bad?\n</think>\n\nA bad one."):
        expected = answer.replace("A bad", "A good")
        parts = [AIMessageChunk(answer[place : place + 5], id="1") for place in range(0, len(answer), 5)]
        model = models.StreamingScripted(answers=[list(parts) for _ in range(4)])
        chat = AlignedChatModel(llm=model, corrector=corrector)
        assert corrector.invoke({"question": "q", "answer": answer}).text == expected
        for chain in (model | corrector, chat):
            assert "".join(one.text for one in chain.stream("q")) == expected
            assert "".join([one.text async for one in chain.astream("q")]) == expected
