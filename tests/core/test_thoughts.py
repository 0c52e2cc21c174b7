"""Answers that begin with what the upstream thought: what of them is looked at, and that the rest stays as it is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aligner_chain import Aligner, Correction, Exchange
from aligner_chain.checks import Checks
from aligner_chain.exchange import edits_between
from aligner_chain.inspectors import CallableInspector
from aligner_chain.policy import Policy
from aligner_chain.session import STEP
from aligner_chain.templates.base import UNCERTAIN
from aligner_chain.thoughts import behind, said, spoken, thoughts, whole

QUESTION = "May I return it?"
HEAD = "<think>\nThey say 90 days. See https://example.com.\n</think>\n\n"
TAIL = "Yes, within 90 days. See https://example.com/returns."
THINKING = Exchange.of(QUESTION, HEAD + TAIL)
THOUGHTS = Policy(thoughts=True, checks=Checks.off())


class Seen:
    """A script that mends the number of days, and notes what it was shown."""

    def __init__(self) -> None:
        self.answers: list[str] = []

    def __call__(self, exchange: Exchange) -> str:
        self.answers.append(exchange.answer)
        return exchange.answer.replace("90", "30")


def applied(correction: Correction) -> str:
    text, end = "", 0
    for edit in correction.edits:
        assert correction.exchange.answer[edit.start : edit.end] == edit.before
        text, end = text + correction.exchange.answer[end : edit.start] + edit.after, edit.end
    return text + correction.exchange.answer[end:]


async def every_way(aligner: Aligner, exchange: Exchange) -> list[tuple[str, Correction]]:
    """What is handed out and the correction, by all the ways to ask."""
    streams: list[list[Any]] = [list(aligner.stream(exchange)), [piece async for piece in aligner.astream(exchange)]]
    with aligner.begin(exchange.turns) as session:
        session.feed(exchange.answer)
        streams.append(list(session.stream()))
    whole = [*aligner.correct([exchange]), *await aligner.acorrect([exchange])]
    return [(one.text, one) for one in whole] + [("".join(pieces[:-1]), pieces[-1]) for pieces in streams]


@pytest.mark.parametrize(
    "head",
    [
        HEAD,
        "<think></think>",
        " \n<thinking>a <b> </think> c</thinking>\n",
        "<thought>It\nis.</thought> ",
        "[THINK]Well.[/THINK]\n",
        "The mark that opens was in the prompt.\n</think>\n\n",
        "<think>a</think>\n\n",
    ],
)
def test_thoughts_end_where_their_mark_does(head: str) -> None:
    for tail in (TAIL, "", "</think>\nis how they end." if head.startswith("<think>") else TAIL):
        assert (thoughts(head + tail), behind(head + tail)) == (head, tail)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        TAIL,
        "Write <think> before it.",
        "It ends with </think> there.",
        "`<think>a</think>` is how it looks.",
        "<think>Nobody closed it. Do this:",
        "<think>a</thinking> b",
        "<thinker>a</thinker> b",
    ],
)
def test_other_texts_have_none(answer: str) -> None:
    assert (thoughts(answer), behind(answer)) == ("", answer)
    exchange = Exchange.of(QUESTION, answer)
    assert spoken(exchange) is exchange


@given(st.text(), st.text(alphabet=st.sampled_from("<>/think[]TINK \n"), max_size=40))
def test_nothing_of_a_text_is_lost(some: str, marks: str) -> None:
    for text in (some + marks, marks + some):
        assert thoughts(text) + behind(text) == text
        assert behind(text).endswith(said(text))


def test_an_answer_says_nothing_while_its_thoughts_go_on() -> None:
    text = HEAD + TAIL
    told = [said(text[:end]) for end in range(len(text) + 1)]
    opened, closed = len("<think>"), len(HEAD.rstrip())
    assert not any(told[opened:closed])
    assert told[-1] == TAIL
    assert all(TAIL.startswith(one) for one in told[closed:])


async def test_what_follows_the_thoughts_is_corrected() -> None:
    script = Seen()
    found = await every_way(Aligner.scripted(script).under(THOUGHTS), THINKING)
    assert set(script.answers) == {TAIL}
    for handed, correction in found:
        assert handed == correction.text == HEAD + TAIL.replace("90", "30")
        assert (correction.outcome, correction.exchange) == ("corrected", THINKING)
        assert applied(correction) == correction.text
        assert correction.edits == edits_between(THINKING.answer, correction.text)


async def test_they_stay_where_nothing_is_changed() -> None:
    right = Exchange.of(QUESTION, HEAD + TAIL.replace("90", "30"))
    for handed, correction in await every_way(Aligner.scripted(Seen()).under(THOUGHTS), right):
        assert handed == correction.text == right.answer
        assert (correction.outcome, correction.edits) == ("approved", ())


def test_without_the_policy_they_are_a_part_of_the_answer() -> None:
    script = Seen()
    [correction] = Aligner.scripted(script).correct([THINKING])
    assert script.answers == [THINKING.answer]
    assert correction.text == THINKING.answer.replace("90", "30")


def test_what_nobody_closed_is_an_answer() -> None:
    script = Seen()
    Aligner.scripted(script).under(THOUGHTS).correct([Exchange.of(QUESTION, "<think>Do it in 90 days.")])
    assert script.answers == ["<think>Do it in 90 days."]


def test_thoughts_alone_are_an_empty_answer() -> None:
    [correction] = Aligner.scripted(Seen()).under(THOUGHTS).correct([Exchange.of(QUESTION, HEAD)])
    assert (correction.outcome, correction.text) == ("skipped", HEAD)


def test_a_failure_leaves_the_whole_answer() -> None:
    def fail(exchange: Exchange) -> str:
        raise RuntimeError("no")

    [correction] = Aligner.scripted(fail).under(THOUGHTS).correct([THINKING])
    assert (correction.outcome, correction.text, correction.exchange) == ("failed", THINKING.answer, THINKING)


def test_checks_and_inspectors_see_what_follows_and_say_where() -> None:
    seen: list[str] = []

    def score(exchange: Exchange) -> float:
        seen.append(exchange.answer)
        return 0.2

    policy = Policy(
        thoughts=True, before=[CallableInspector(score)], after=[CallableInspector(score)], checks=Checks(links="keep")
    )
    # The link in the thoughts is not the one that is lost.
    [correction] = Aligner.scripted(lambda exchange: "Yes, within 30 days.").under(policy).correct([THINKING])
    assert seen == [TAIL]
    assert (correction.outcome, correction.text) == ("kept", THINKING.answer)
    [finding] = correction.findings
    assert finding.start is not None
    assert THINKING.answer[finding.start : finding.end] == "https://example.com/returns"


def test_a_refusal_stands_alone() -> None:
    never = CallableInspector(lambda exchange: 0.0)
    policy = Policy(thoughts=True, before=[never], refusal="I cannot say.", floor=0.5)
    [correction] = Aligner.scripted(lambda exchange: exchange.answer).under(policy).correct([THINKING])
    assert (correction.outcome, correction.text) == ("kept", "I cannot say.")
    assert applied(correction) == correction.text


async def test_a_session_reads_no_thoughts(playing: Any) -> None:
    """The prompt that grows is the one that is asked in the end, and the tokens' places are those of the whole answer."""
    aligner: Any = playing("Within 30 days.", finish="eos", overlap=True)
    aligner.engine.beats.release(10_000)
    thoughtful = aligner.under(THOUGHTS)
    [plain] = thoughtful.correct([Exchange.of(QUESTION, TAIL)])
    with thoughtful.begin(THINKING.turns) as session:
        for place in range(0, len(THINKING.answer), 5):
            session.feed(THINKING.answer[place : place + 5])
        correction = session.finish()
    [alone], [ticket] = aligner.engine.submitted, aligner.engine.tickets
    assert ticket is aligner.engine.opened[-1]
    assert ticket.request.prompt == alone.prompt
    assert len(aligner.engine.fed[-1]) > len(alone.prompt) - STEP - UNCERTAIN
    assert correction.text == HEAD + plain.text
    assert [(one.start - len(HEAD), one.end - len(HEAD)) for one in correction.tokens] == [
        (one.start, one.end) for one in plain.tokens
    ]


async def test_an_unchecked_stream_begins_with_the_thoughts(playing: Any) -> None:
    aligner: Any = playing("Within 30 days.", finish="eos")
    aligner.engine.beats.release(10_000)
    *pieces, correction = aligner.under(THOUGHTS).stream(THINKING, unchecked=True)
    assert "".join(pieces) == correction.text == HEAD + "Within 30 days."
    assert pieces[0].startswith(HEAD)


def test_whole_is_the_identity_without_thoughts() -> None:
    [correction] = Aligner.scripted(Seen()).correct([Exchange.of(QUESTION, TAIL)])
    assert whole(correction, correction.exchange) is correction
