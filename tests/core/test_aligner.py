"""The Aligner: every outcome, on a tiny model that was trained for it here."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import by_heart
import pytest
import torch

from aligner_chain import Aligner, Exchange, Turn
from aligner_chain.checkpoint import AlignerMetadata, read_metadata, write_metadata
from aligner_chain.engines.drafting import CPU_FP32
from aligner_chain.engines.huggingface import HuggingFaceEngine
from aligner_chain.errors import (
    CapabilityError,
    ConfigurationError,
    ContextOverflowError,
    CorrectionTimeoutError,
    DelimiterError,
    EngineError,
    IncompleteCorrectionError,
    PromptNotFoundError,
    TemplateError,
    UnreadableCorrectionError,
)
from aligner_chain.templates import get_template, prepare_tokenizer

GOOD = Exchange.of("Return?", "Within 30 days.")
WRONG = Exchange.of("Return?", "Within 90 days!")
RUDE = Exchange.of("Hello?", "Go away.")
ENDLESS = Exchange.of("Count.", "One.")
ODD = Exchange.of("Odd?", "Odd.")
SAME = Exchange.of("Open?", "From 9 to 5.")
LONGER = Exchange.of("On Sunday?", "We are closed")


@pytest.fixture(scope="module")
def trained(make_tokenizer: Any, tiny_llama: Any) -> tuple[Any, Any]:
    """A tiny Aligner and its tokenizer, trained until it knows the few exchanges above by heart."""
    tokenizer = make_tokenizer()
    prepare_tokenizer(tokenizer)
    template = get_template("aligner-chain/1")
    unreadable = tuple(tokenizer.encode("Odd</s>", add_special_tokens=False))
    endless = template.target(tokenizer, "2" * 80)[:-1]
    targets = {
        GOOD: template.target(tokenizer, None),
        WRONG: template.target(tokenizer, "Within 30 days!", ["true"]),
        RUDE: template.target(tokenizer, ""),
        ENDLESS: endless,
        ODD: unreadable,
        SAME: template.target(tokenizer, SAME.answer, ["true"]),
        LONGER: template.target(tokenizer, "We are closed today."),
    }
    model = tiny_llama(tokenizer, dtype="float32", initializer_range=0.1)
    rows = [(template.prompt(exchange, tokenizer), target) for exchange, target in targets.items()]
    width = max(len(prompt) + len(target) for prompt, target in rows)
    ids, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), -100)
    for row, (prompt, target) in enumerate(rows):
        ids[row, : len(prompt) + len(target)] = torch.tensor([*prompt, *target])
        labels[row, len(prompt) : len(prompt) + len(target)] = torch.tensor(target)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        loss = model(ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.02
    return model.eval(), tokenizer


@pytest.fixture
def aligner(trained: Any) -> Iterator[Aligner]:
    model, tokenizer = trained
    metadata = AlignerMetadata(name="tiny", version="7", template="aligner-chain/1")
    made = Aligner(
        HuggingFaceEngine(model, tokenizer, curve=CPU_FP32),
        metadata=metadata,
        template=get_template("aligner-chain/1"),
        tokenizer=tokenizer,
    )
    yield made
    made.close()


def test_every_outcome_in_one_batch_and_in_order(aligner: Aligner) -> None:
    too_long = Exchange.of("q" * 300, "a")
    empty, blind = Exchange.of("Hello?", " \n"), Exchange(turns=(), answer="a")
    exchanges = [GOOD, WRONG, RUDE, ENDLESS, ODD, too_long, empty, blind]
    corrections = aligner.correct(exchanges)
    assert [one.exchange for one in corrections] == exchanges
    good, wrong, rude, endless, odd, long, skipped, unasked = corrections

    assert (good.outcome, good.text, good.edits, good.usage.forwards) == ("approved", GOOD.answer, (), 1)
    assert good.scores["keep"] > 0.9
    assert (wrong.outcome, wrong.text, wrong.criteria) == ("corrected", "Within 30 days!", ("true",))
    assert wrong.diff() == "Within [-90-]{+30+} days!"
    assert wrong.scores["keep"] < 0.1
    assert (rude.outcome, rude.text, rude.reason) == ("kept", "Go away.", "the correction was empty")
    assert (skipped.outcome, skipped.text) == ("skipped", " \n")
    for failed, error in [
        (endless, IncompleteCorrectionError),
        (odd, UnreadableCorrectionError),
        (long, ContextOverflowError),
        (unasked, PromptNotFoundError),
    ]:
        assert (failed.outcome, type(failed.error), failed.text) == ("failed", error, failed.exchange.answer)
        assert failed.reason
        assert str(failed.error).startswith(failed.reason)
        with pytest.raises(error):
            failed.raise_for_failure()
    assert {(one.aligner, one.template) for one in corrections} == {("tiny@7", "aligner-chain/1")}
    assert endless.usage.new_tokens > 60
    said = str(endless.error)
    assert (
        f"after {endless.usage.new_tokens} tokens, the most that one gets: half as many again as its answer has and 64, "
        "or those of its training" in said
    )
    for way_out in (
        'on_error="pass_through"',
        "return_exceptions=True",
        '"longest_output": 2048',
    ):
        assert way_out in said


def test_a_short_answer_may_get_as_long_a_correction_as_was_trained(make_tokenizer: Any, tmp_path: Path) -> None:
    """A refusal that becomes an answer is many times as long as it was."""
    long = "".join(chr(at) for at in range(33, 127) if chr(at) not in ":<|>x")
    folder = by_heart.always(tmp_path, make_tokenizer(), long)
    short, metadata = Exchange.of("Free?", "x"), read_metadata(folder)
    found = {}
    for longest in (0, 80, 120):
        write_metadata(folder, replace(metadata, longest_output=longest))
        with contextlib.closing(Aligner.from_pretrained(str(folder))) as aligner:
            [found[longest]] = aligner.correct([short])
    assert [one.outcome for one in found.values()] == ["failed", "failed", "corrected"]
    assert found[120].text == long
    assert [one.usage.new_tokens for one in found.values()][:2] == [65, 80]


def test_an_output_that_the_window_ends_says_so(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = trained
    template = get_template("aligner-chain/1")
    window = len(template.prompt(ENDLESS, tokenizer)) + 30
    monkeypatch.setattr(model.config, "max_position_embeddings", window)
    metadata = AlignerMetadata(name="tiny", version="7", template=template.name)
    engine = HuggingFaceEngine(model, tokenizer, curve=CPU_FP32)
    narrow = Aligner(engine, metadata=metadata, template=template, tokenizer=tokenizer)
    [endless] = narrow.correct([ENDLESS])
    narrow.close()
    assert isinstance(endless.error, IncompleteCorrectionError)
    assert f"after 30 tokens, all that the model's window of {window} has room for. Ways out" in str(endless.error)
    assert "an Aligner with a longer window" in str(endless.error)


async def test_the_async_twin_gives_the_same(aligner: Aligner) -> None:
    exchanges = [GOOD, WRONG, RUDE, ODD, Exchange.of("Hello?", "")]
    waited = await aligner.acorrect(exchanges)
    assert [_told(one) for one in waited] == [_told(one) for one in aligner.correct(exchanges)]


def _told(correction: Any) -> Any:
    return replace(correction, id="", usage=type(correction.usage)(), scores={})


def test_nothing_to_correct(aligner: Aligner) -> None:
    assert aligner.correct([]) == []


STRENGTHS = (0.0, 1e-6, 0.25, 0.5, 0.75, 1 - 1e-6, 1.0)


def test_strength_is_the_score_below_which_an_answer_is_corrected(aligner: Aligner) -> None:
    answers = [GOOD, WRONG, *(Exchange.of("Return?", f"Within {days} days.") for days in (3, 31, 300, 90))]
    leave = [scores["leave"] for scores in aligner.inspect(answers)]
    assert len({round(score, 6) for score in leave}) > 2
    for strength in STRENGTHS:
        for score, one in zip(leave, aligner.correct(answers, strength=strength), strict=True):
            assert (one.outcome == "approved") == (score > strength) or strength == 0
            if strength:
                # The score is the model's own, whatever the strength.
                assert strength == 1 or one.scores["leave"] == pytest.approx(score)
                assert one.thresholds == {"leave": strength}


def test_what_would_be_written_again_is_left_at_once(aligner: Aligner) -> None:
    """The verdict says FIX, and what follows is the same text: the first forward tells."""
    by_verdict = aligner.correct([SAME, LONGER])
    assert [one.outcome for one in by_verdict] == ["approved", "corrected"]
    assert by_verdict[0].scores["keep"] < 0.1
    assert by_verdict[0].usage.forwards > 1
    metadata = replace(aligner.metadata, thresholds={"leave": 0.8})
    leaving = Aligner(aligner.engine, metadata=metadata, template=aligner.template, tokenizer=aligner.tokenizer)
    same, longer, wrong, good = leaving.correct([SAME, LONGER, WRONG, GOOD])
    assert (same.outcome, same.text, same.usage.forwards) == ("approved", SAME.answer, 1)
    assert same.scores["leave"] > 0.8 > 0.1 > same.scores["keep"]
    # Every token of it is certain, and so is that it does not end there.
    assert (longer.outcome, longer.text) == ("corrected", "We are closed today.")
    assert longer.scores["leave"] < 0.2
    assert (wrong.text, good.outcome, good.usage.forwards) == ("Within 30 days!", "approved", 1)
    assert same.thresholds == {"leave": 0.8}


def test_at_strength_0_every_answer_is_served_as_it_is(aligner: Aligner) -> None:
    for one in aligner.correct([GOOD, WRONG, ENDLESS], strength=0.0):
        assert (one.outcome, one.text, one.usage.forwards) == ("approved", one.exchange.answer, 0)


def test_without_a_verdict_the_least_likely_token_decides(trained: Any) -> None:
    model, tokenizer = trained
    aligner = foreign_aligner(model, tokenizer)
    answers = [GOOD, WRONG, RUDE, ODD]
    plain = aligner.correct(answers)
    copy = [scores["copy"] for scores in aligner.inspect(answers)]
    assert 0 < min(copy) < max(copy) < 1
    for strength in sorted({*STRENGTHS, *copy}):
        for score, before, one in zip(copy, plain, aligner.correct(answers, strength=strength), strict=True):
            if score > strength or strength == 0:
                assert (one.outcome, one.text) == ("approved", one.exchange.answer)
                assert strength == 0 or one.usage.forwards == 1
            else:
                assert (one.outcome, one.text) == (before.outcome, before.text)
            if 0 < strength < 1:
                assert one.scores["copy"] == pytest.approx(score)
    aligner.close()


@pytest.mark.parametrize("name", ["copy", "leave"])
def test_without_a_verdict_a_threshold_holds_by_either_name(trained: Any, name: str) -> None:
    model, tokenizer = trained
    aligner = foreign_aligner(model, tokenizer)
    scores = [scores["copy"] for scores in aligner.inspect([GOOD, WRONG])]
    threshold = sum(scores) / 2
    metadata = replace(aligner.metadata, thresholds={name: threshold})
    gated = Aligner(aligner.engine, metadata=metadata, template=aligner.template, tokenizer=tokenizer)
    gates = gated.correct([GOOD, WRONG])
    assert [one.outcome == "approved" for one in gates] == [score > threshold for score in scores]
    assert [one.thresholds for one in gates] == [{"copy": threshold}] * 2
    aligner.close()


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_is_between_0_and_1(aligner: Aligner, strength: float) -> None:
    with pytest.raises(ConfigurationError, match=r"from 0 .* to 1"):
        aligner.correct([GOOD], strength=strength)


def test_what_cannot_be_scored_has_no_score(aligner: Aligner) -> None:
    assert aligner.inspect([Exchange.of("Return?", ""), Exchange(turns=(), answer="x")]) == [{}, {}]
    with pytest.raises(CapabilityError, match="ClassifierInspector"):
        Aligner.scripted(lambda exchange: exchange.answer).inspect([GOOD])


def test_left_out_turns_are_told(aligner: Aligner) -> None:
    history = tuple(Turn(role=role, text="x" * 250) for role in ("user", "assistant"))
    [correction] = aligner.correct([replace(GOOD, turns=(*history, *GOOD.turns))])
    assert (correction.outcome, correction.reason) == ("approved", "2 oldest turns left out to fit the window")


def test_a_closed_engine_fails_each_answer(aligner: Aligner) -> None:
    aligner.close()
    corrections = aligner.correct([GOOD, Exchange.of("q", "")])
    assert [one.outcome for one in corrections] == ["failed", "skipped"]
    assert isinstance(corrections[0].error, EngineError)


# --- time ---


@pytest.fixture
def slow(trained: Any) -> Iterator[threading.Event]:
    """Makes every forward of the model wait for the event."""
    go = threading.Event()
    handle = trained[0].register_forward_pre_hook(lambda *_: _wait(go))
    yield go
    go.set()
    handle.remove()


def _wait(go: threading.Event) -> None:
    """A hook must return nothing."""
    go.wait(30)


def test_a_timeout_fails_what_is_not_finished(aligner: Aligner, slow: threading.Event) -> None:
    exchanges = [GOOD, Exchange.of("q", "")]
    corrections = aligner.correct(exchanges, timeout=0.05)
    assert [one.outcome for one in corrections] == ["failed", "skipped"]
    assert isinstance(corrections[0].error, CorrectionTimeoutError)
    assert isinstance(corrections[0].error, TimeoutError)
    slow.set()
    assert aligner.correct([GOOD], timeout=60)[0].outcome == "approved"


async def test_an_async_timeout_fails_what_is_not_finished(aligner: Aligner, slow: threading.Event) -> None:
    [correction] = await aligner.acorrect([GOOD], timeout=0.05)
    assert isinstance(correction.error, CorrectionTimeoutError)


async def test_cancelling_the_task_cancels_the_rows(aligner: Aligner, slow: threading.Event) -> None:
    task = asyncio.create_task(aligner.acorrect([ENDLESS]))
    seen: list[int] = []
    engine: Any = aligner.engine
    handle = engine.model.register_forward_hook(lambda *_: seen.append(1))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    slow.set()
    aligner.close()
    handle.remove()
    # It would have gone on for 69 tokens.
    assert len(seen) <= 1


def test_a_deadline_found_by_the_engine_is_a_timeout(aligner: Aligner) -> None:
    [correction] = aligner.correct([GOOD], timeout=0.0)
    assert isinstance(correction.error, CorrectionTimeoutError)


# --- set up wrongly ---


def foreign_aligner(model: Any, tokenizer: Any) -> Aligner:
    template = get_template("pku-aligner/2", "refuse")
    metadata = AlignerMetadata(name="pku", version="1", template=template.name)
    return Aligner(HuggingFaceEngine(model, tokenizer), metadata=metadata, template=template, tokenizer=tokenizer)


def test_templates_without_verdict_or_criteria(trained: Any) -> None:
    foreign = foreign_aligner(*trained)
    with pytest.raises(CapabilityError, match="criteria"):
        foreign.correct([GOOD], criteria=["polite"])
    [correction] = foreign.correct([Exchange.of("##Answer: x", "y")])
    assert isinstance(correction.error, DelimiterError)
    foreign.close()


def test_an_engine_of_tokens_needs_a_fitting_template(tokenizer: Any, tiny_llama: Any) -> None:
    engine = HuggingFaceEngine(tiny_llama(tokenizer), tokenizer)
    metadata = AlignerMetadata(name="x", version="1", template="aligner-chain/1")
    with pytest.raises(ConfigurationError, match="template"):
        Aligner(engine, metadata=metadata)
    with pytest.raises(TemplateError, match="train-aligner"):
        Aligner(engine, metadata=metadata, template=get_template("aligner-chain/1"), tokenizer=tokenizer)


# --- scripted ---


def test_a_script_plays_the_aligner() -> None:
    def script(exchange: Exchange) -> str:
        if exchange.question == "fail":
            raise LookupError("no such line")
        return exchange.answer.replace("90", "30")

    aligner = Aligner.scripted(script)
    assert aligner.identity == "scripted@1"
    good, wrong, failed = aligner.correct([GOOD, WRONG, Exchange.of("fail", "x")])
    assert (good.outcome, wrong.outcome, wrong.text) == ("approved", "corrected", "Within 30 days!")
    assert isinstance(failed.error, EngineError)
    assert isinstance(failed.error.__cause__, LookupError)
    assert Aligner.scripted(lambda _: " ").correct([GOOD])[0].outcome == "kept"
    with pytest.raises(CapabilityError, match="strength="):
        aligner.correct([GOOD], strength=0.5)
    assert [one.text for one in aligner.correct([WRONG] * 2, strength=0.0)] == [WRONG.answer] * 2
    assert aligner.correct([WRONG], strength=1.0)[0].text == "Within 30 days!"
    aligner.close()
    assert isinstance(aligner.correct([GOOD])[0].error, EngineError)


def test_what_a_script_finished_before_the_timeout_counts() -> None:
    go = threading.Event()
    aligner = Aligner.scripted(lambda exchange: exchange.answer if exchange is GOOD or go.wait(30) else "")
    good, wrong = aligner.correct([GOOD, WRONG], timeout=1.0)
    go.set()
    assert good.outcome == "approved"
    assert isinstance(wrong.error, CorrectionTimeoutError)
    aligner.close()
