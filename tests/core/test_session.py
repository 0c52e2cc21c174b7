"""`Aligner.begin`: what the engine reads while the upstream writes, and what comes of it at the end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import by_heart
import pytest
from hypothesis import given
from hypothesis import strategies as st
from playback import playing_aligner

from aligner_chain import Aligner, Correction, Exchange, Turn
from aligner_chain.checkpoint import AlignerMetadata
from aligner_chain.engines.huggingface import HuggingFaceEngine
from aligner_chain.errors import (
    CapabilityError,
    ContextOverflowError,
    CorrectionTimeoutError,
    DelimiterError,
    EngineError,
    PromptNotFoundError,
    TemplateError,
)
from aligner_chain.exchange import Usage
from aligner_chain.session import STEP, Session
from aligner_chain.templates import get_template, plain_text, prepare_tokenizer
from aligner_chain.templates.base import ROOM, UNCERTAIN
from aligner_chain.templates.growing import GrowingText

TURNS = (Turn(role="system", text="Be brief."), Turn(role="user", text="May I return it?"))
ANSWER = "You may return it within 90 days, and we pay for it. Ask us where to, and keep what it came in. " * 2
WHOLE = Exchange(turns=TURNS, answer=ANSWER)
TEMPLATES = ["aligner-chain/1", "pku-aligner/1", "pku-aligner/2", "align-anything/1"]


@pytest.fixture
def overlapping(playing: Any) -> Callable[..., Aligner]:
    """Makes an Aligner whose engine reads prompts that still grow, and plays at once."""

    def make(text: str | None = "Within 30 days.", *, beats: int = 10_000, **settings: Any) -> Aligner:
        aligner: Any = playing(text, finish="eos" if text else "stop", overlap=True, **settings)
        aligner.engine.beats.release(beats)
        return aligner

    return make


def engine(aligner: Aligner) -> Any:
    return aligner.engine


def fed(session: Session, text: str = ANSWER, size: int = 7) -> Session:
    for place in range(0, len(text), size):
        session.feed(text[place : place + size])
    return session


def comparable(correction: Correction) -> Correction:
    return replace(correction, id="", usage=replace(correction.usage, latency_s=0.0))


# The same as without


@pytest.mark.parametrize("template", TEMPLATES)
async def test_the_same_correction_with_overlap(overlapping: Any, template: str) -> None:
    aligner = overlapping(template=template)
    [expected] = aligner.correct([WHOLE])
    submitted = len(engine(aligner).submitted)
    for end in (Session.finish, Session.afinish):
        session = fed(aligner.begin(TURNS))
        assert len(engine(aligner).fed[-1]) > len(ANSWER) - STEP - UNCERTAIN
        result = end(session)
        correction = await result if asyncio.iscoroutine(result) else result
        assert comparable(correction) == comparable(expected)
        [ticket] = engine(aligner).tickets
        assert ticket is engine(aligner).opened[-1]
        assert ticket.request.prompt == engine(aligner).submitted[0].prompt
    assert len(engine(aligner).submitted) == submitted


@pytest.mark.parametrize("template", ["aligner-chain/1", "pku-aligner/2"])
async def test_the_same_correction_by_a_real_engine(tiny_llama: Any, prepared: Any, template: str) -> None:
    model = HuggingFaceEngine(tiny_llama(prepared, max_position_embeddings=512), prepared)
    metadata = AlignerMetadata(name="tiny", version="1", template=template)
    aligner = Aligner(model, metadata=metadata, template=get_template(template), tokenizer=prepared)
    short = replace(WHOLE, answer=ANSWER[:60])
    expected, *others = [
        aligner.correct([short])[0],
        fed(aligner.begin(TURNS), short.answer).finish(),
        await fed(aligner.begin(TURNS), short.answer).afinish(),
    ]
    aligner.close()
    for one in others:
        assert one.scores == pytest.approx(expected.scores, abs=1e-12)  # read in pieces, the sums have another order
        without = {"usage": Usage(), "scores": {}}
        assert replace(comparable(one), **without) == replace(comparable(expected), **without)
        assert type(one.error) is type(expected.error)


async def test_an_engine_of_texts_does_it_all_at_the_end() -> None:
    aligner = Aligner.scripted(lambda exchange: exchange.answer.upper())
    assert fed(aligner.begin(TURNS)).finish().text == ANSWER.upper()
    assert (await fed(aligner.begin(TURNS)).afinish()).text == ANSWER.upper()
    assert next(fed(aligner.begin(TURNS)).stream()) == ANSWER.upper()
    assert [piece async for piece in fed(aligner.begin(TURNS)).astream()][:-1] == [ANSWER.upper()]


async def test_it_streams_as_the_aligner_does(overlapping: Any) -> None:
    aligner = overlapping("Within 30 days, 日本.")
    *pieces, expected = aligner.stream(WHOLE, unchecked=True)
    for streamed in (
        list(fed(aligner.begin(TURNS)).stream(unchecked=True)),
        [piece async for piece in fed(aligner.begin(TURNS)).astream(unchecked=True)],
    ):
        assert "".join(streamed[:-1]) == "".join(pieces) == expected.text
        assert comparable(streamed[-1]) == comparable(expected)
        assert engine(aligner).opened[-1].request.stream
    assert len(engine(aligner).submitted) == 1


def test_criteria_strength_and_passages_go_along(overlapping: Any) -> None:
    aligner = overlapping()
    session = fed(aligner.begin(TURNS, ["Returns: 30 days."], criteria=["true"], strength=0.9))
    correction = session.finish()
    [read] = engine(aligner).opened
    aligner.correct([replace(WHOLE, context=("Returns: 30 days.",))], criteria=["true"], strength=0.9)
    [submitted] = engine(aligner).submitted
    assert replace(read.request, key="") == replace(submitted, key="")
    assert correction.exchange.context == ("Returns: 30 days.",)
    assert engine(aligner).fed[-1] == submitted.prompt[: len(engine(aligner).fed[-1])]


def test_the_exchange_of_the_end_wins(overlapping: Any) -> None:
    aligner = overlapping()
    known = Exchange.of("Another question?", "Another answer.", context=("p",))
    given = replace(known, message_id="m", run_id="r", subject="s", split_key="k")
    for correction in (
        fed(aligner.begin(TURNS)).finish(exchange=given),
        list(fed(aligner.begin(TURNS)).stream(exchange=given))[-1],
    ):
        assert correction.exchange == given
        assert engine(aligner).tickets[0] is engine(aligner).opened[-1]
    aligner.correct([given])
    assert engine(aligner).opened[-1].request.prompt == engine(aligner).submitted[0].prompt


# What is read


def test_the_question_is_read_before_the_answer_comes(overlapping: Any, prepared: Any) -> None:
    aligner = overlapping()
    aligner.begin(TURNS)
    [asked] = engine(aligner).fed
    assert prepared.decode(asked).endswith("<|ac:question|>May I return it?<|ac:answer|>")


def test_small_pieces_are_gathered(overlapping: Any) -> None:
    aligner = overlapping()
    session = aligner.begin(TURNS)
    for place in range(STEP - 1):
        session.feed(ANSWER[place])
    assert len(engine(aligner).fed) == 1
    session.feed(ANSWER[STEP - 1])
    assert len(engine(aligner).fed) == 2
    for letter in ANSWER[STEP:]:
        session.feed(letter)
    assert len(engine(aligner).fed) == 1 + len(ANSWER) // STEP


def test_a_session_that_begins_as_another_prompt_did_holds_nobody_up(tmp_path: Path, make_tokenizer: Any) -> None:
    """What was read of an earlier prompt is taken over into a row that has no memory yet."""
    aligner = Aligner.from_pretrained(by_heart.always(tmp_path / "nay", make_tokenizer()))
    asked = "May I return what I bought here?"  # more tokens than must agree before any are copied
    [first] = aligner.correct([Exchange.of(asked, "Yes.")])
    session = aligner.begin([Turn(role="user", text=asked)])
    [other] = aligner.correct([Exchange.of("Who?", "Me.")], timeout=20)
    assert not isinstance(other.error, CorrectionTimeoutError)
    session.feed("Yes.")
    assert (session.finish(timeout=20).text, other.text) == (first.text, "No.")
    aligner.close()


@cache
def tokenizers() -> dict[str, Any]:
    """With merges inside of words, and with merges across everything, as Llama 2 has them."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words = Tokenizer(models.BPE())
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    words.train_from_iterator([ANSWER], trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    spaced = Tokenizer(models.BPE(unk_token="<unk>"))
    spaced.pre_tokenizer = pre_tokenizers.Metaspace()
    spaced.train_from_iterator([ANSWER], trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"]))
    joined = Tokenizer.from_str(json.dumps({**json.loads(spaced.to_str()), "pre_tokenizer": None}))
    joined.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made = {}
    for name, backend in (("words", words), ("joined", joined)):
        made[name] = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
        made[name].chat_template = "{% for m in messages %}[{{ m['content'] | trim }}]\n{% endfor %}answer:"
        prepare_tokenizer(made[name])
    return made


TEXTS = st.lists(
    st.sampled_from([*ANSWER.split(" "), " ", "\n", "  ", "日本語", "👍🏽", "é", "ASSISTANT:", "</s>", "x" * 9]),
    max_size=120,
).map(" ".join)


CHANGED = 6
"""Most tokens at the end of what was told that may turn out otherwise; they are read again."""


@pytest.mark.parametrize("kind", ["words", "joined"])
@pytest.mark.parametrize("template", TEMPLATES)
@given(text=TEXTS, sizes=st.lists(st.integers(1, 90), min_size=1, max_size=5))
def test_what_was_read_is_what_the_prompt_begins_with(kind: str, template: str, text: str, sizes: list[int]) -> None:
    aligner = playing_aligner(tokenizers()[kind], "x", template=template, overlap=True)
    session = aligner.begin(TURNS)
    rest, told = text, 0
    while rest:
        size = sizes[told % len(sizes)]
        session.feed(rest[:size])
        rest, told = rest[size:], told + 1
    prompt = get_template(template).prompt(replace(WHOLE, answer=text), tokenizers()[kind])
    for read in engine(aligner).fed:
        certain = len(read) - CHANGED
        assert prompt[: max(certain, 0)] == read[: max(certain, 0)]
    session.cancel()


@pytest.mark.parametrize("kind", ["words", "joined"])
@given(texts=st.lists(TEXTS, max_size=6))
def test_only_the_end_of_a_growing_text_is_tokenised_and_gives_the_same(kind: str, texts: list[str]) -> None:
    plain = plain_text(tokenizers()[kind])
    growing, text = GrowingText(plain), ""
    for more in texts:
        text += more
        assert growing.encode(text) == plain.encode(text)
    assert growing.encode("another text") == plain.encode("another text")


def test_a_long_text_is_not_tokenised_anew_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = plain_text(tokenizers()["words"])
    lengths: list[int] = []
    whole = plain.encode_with_spans
    monkeypatch.setattr(plain, "encode_with_spans", lambda text: (lengths.append(len(text)), whole(text))[1])
    growing = GrowingText(plain)
    for size in range(STEP, 40 * len(ANSWER), STEP):
        growing.encode((ANSWER * 40)[:size])
    assert max(lengths[10:]) < 6 * STEP


def test_an_end_that_reads_differently_alone_is_not_believed() -> None:
    class Counting:
        """Each character is a token, whose id is the length of the text."""

        def encode_with_spans(self, text: str) -> Any:
            return (len(text),) * len(text), tuple((place, place + 1) for place in range(len(text)))

    growing = GrowingText(Counting())  # type: ignore[arg-type]
    for size in (100, 130, 160):
        assert growing.encode("x" * size) == (size,) * size


# What goes wrong


def test_what_cannot_be_rendered_shows_at_the_end(overlapping: Any) -> None:
    aligner = overlapping()
    with pytest.raises(TemplateError):
        fed(aligner.begin([Turn(role="odd", text="?"), *TURNS])).finish()
    refusing = overlapping(template="pku-aligner/1")
    refusing = Aligner(
        engine(refusing),
        metadata=refusing.metadata,
        template=get_template("pku-aligner/1", "refuse"),
        tokenizer=refusing.tokenizer,
    )
    asked = [Turn(role="user", text="a | b")]
    assert isinstance(fed(refusing.begin(asked)).finish().error, DelimiterError)
    with pytest.raises(CapabilityError):
        fed(refusing.begin(TURNS, criteria=["true"])).finish()
    assert isinstance(fed(aligner.begin([])).finish().error, PromptNotFoundError)
    assert engine(aligner).opened == engine(refusing).opened == []


def test_an_error_while_it_is_fed_leaves_the_finish_to_do_it(overlapping: Any, monkeypatch: Any) -> None:
    aligner = overlapping()
    session = aligner.begin(TURNS)
    with monkeypatch.context() as patched:
        patched.setattr(GrowingText, "encode", lambda *_: 1 / 0)
        fed(session)
    assert engine(aligner).opened[0].cancelled
    assert session.finish().outcome == "corrected"
    monkeypatch.setattr(engine(aligner), "open", lambda request: 1 / 0)
    assert fed(aligner.begin(TURNS)).finish().outcome == "corrected"
    assert len(engine(aligner).submitted) == 2


def test_an_engine_that_let_go_of_it_is_asked_anew(overlapping: Any) -> None:
    aligner = overlapping()
    session = fed(aligner.begin(TURNS))
    engine(aligner).opened[0].future.set_exception(EngineError("no room"))
    assert session.finish().outcome == "corrected"
    assert len(engine(aligner).submitted) == 1


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_prompt_that_outgrows_the_window_is_not_read_on(overlapping: Any, prepared: Any, template: str) -> None:
    needed = len(get_template(template).prompt(WHOLE, prepared)) + len(ANSWER) + ROOM
    for spare, error in ((0, None), (-150, ContextOverflowError)):
        aligner = overlapping(template=template, window=needed + spare)
        session = fed(aligner.begin(TURNS[1:] if error else TURNS))
        [read] = engine(aligner).opened
        assert read.cancelled == (error is not None)
        assert type(session.finish().error) is (error or type(None))
    longer = [Turn(role="user", text="x" * 400), *TURNS]
    session = fed(overlapping(template=template, window=needed).begin(longer))
    assert "left out to fit the window" in session.finish().reason
    assert all(ticket.cancelled for ticket in engine(session.aligner).opened)


async def test_whoever_does_not_finish_frees_it(overlapping: Any) -> None:
    aligner = overlapping()
    fed(aligner.begin(TURNS)).cancel()
    with aligner.begin(TURNS) as session:
        fed(session)
    for text in (" ", "\n"):
        assert fed(aligner.begin(TURNS), text).finish().outcome == "skipped"
        assert (await fed(aligner.begin(TURNS), text).afinish()).outcome == "skipped"
    assert [ticket.cancelled for ticket in engine(aligner).opened] == [True] * 6
    assert engine(aligner).submitted == []


def test_what_was_finished_is_over(overlapping: Any) -> None:
    aligner = overlapping()
    with fed(aligner.begin(TURNS)) as session:
        assert session.finish().outcome == "corrected"
        read = list(engine(aligner).fed)
        fed(session)
    assert engine(aligner).fed == read
    assert not engine(aligner).opened[0].cancelled


async def test_too_slow_has_failed(overlapping: Any) -> None:
    for end in (Session.finish, Session.afinish):
        aligner = overlapping(beats=3)
        result = end(fed(aligner.begin(TURNS)), timeout=0.05)
        correction = await result if asyncio.iscoroutine(result) else result
        assert isinstance(correction.error, CorrectionTimeoutError)
        assert engine(aligner).opened[0].cancelled


async def test_whoever_stops_reading_stops_the_decoding(overlapping: Any) -> None:
    aligner = overlapping(beats=4)
    stream = fed(aligner.begin(TURNS)).stream(unchecked=True)
    next(stream)
    stream.close()
    assert engine(aligner).opened[0].cancelled
    engine(aligner).beats.release(6)  # two of them for the first, which still plays
    astream = fed(aligner.begin(TURNS)).astream(unchecked=True)
    await anext(astream)
    await astream.aclose()
    assert engine(aligner).opened[1].cancelled


async def test_the_event_loop_stays_free(overlapping: Any) -> None:
    async def streamed(session: Session) -> Any:
        return [piece async for piece in session.astream(unchecked=True)][-1]

    for end in (Session.afinish, streamed):
        aligner = overlapping(beats=1)
        task = asyncio.ensure_future(end(fed(aligner.begin(TURNS))))
        while not engine(aligner).opened[0].sealed:  # noqa: ASYNC110  The engine has no event to wait for.
            await asyncio.sleep(0.001)
        engine(aligner).beats.release(1000)
        assert (await asyncio.wait_for(task, 10)).outcome == "corrected"
    task = asyncio.ensure_future(fed(overlapping(beats=1).begin(TURNS)).afinish())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
