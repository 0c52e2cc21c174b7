"""One corrector for a whole service: threads, tasks and thousands of runs, none of which sees another's answer."""

from __future__ import annotations

import asyncio
import gc
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from aligner_chain import Aligner, Correction
from aligner_chain.langchain import AlignerCorrector
from aligner_chain.langchain.recorder import recorder


def test_twelve_threads_get_each_its_own(
    models: SimpleNamespace, prompt: ChatPromptTemplate, corrector: AlignerCorrector, told: list[Correction]
) -> None:
    chains = [
        prompt | models.Chat(ids="constant") | corrector | StrOutputParser(),
        prompt | models.StreamingChat() | StrOutputParser() | corrector,
    ]

    def ask(number: int) -> bool:
        return chains[number % 2].invoke({"q": str(number)}) == f"<{number}|A({number})>"

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(ask, range(900)))
    assert sorted(int(correction.exchange.question) for correction in told) == list(range(900))


async def test_two_hundred_tasks_get_each_its_own(
    models: SimpleNamespace, prompt: ChatPromptTemplate, corrector: AlignerCorrector, told: list[Correction]
) -> None:
    chain = prompt | models.AsyncChat(ids="constant") | StrOutputParser() | corrector

    async def ask(number: int) -> str:
        if number % 2:
            return "".join([piece async for piece in chain.astream({"q": str(number)})])
        return await chain.ainvoke({"q": str(number)})

    answers = await asyncio.gather(*map(ask, range(200)))
    assert answers == [f"<{number}|A({number})>" for number in range(200)]
    assert len({correction.id for correction in told}) == 200


def test_five_thousand_runs_leave_nothing_behind(
    models: SimpleNamespace, prompt: ChatPromptTemplate, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", logger="aligner_chain.decisions")  # pytest keeps each line
    corrector = AlignerCorrector(Aligner.scripted(lambda exchange: exchange.answer.lower()))
    chain = prompt | models.StreamingChat() | StrOutputParser() | corrector

    def ask(count: int) -> int:
        for number in range(count):
            assert chain.invoke({"q": str(number)}) == f"A({number})".lower()
        gc.collect()
        return sys.getallocatedblocks()

    early = ask(1000)
    assert ask(4000) - early < 2000, "half a block a run"
    assert recorder().counts() == {"chains": 0, "open": 0, "runs": recorder().kept_runs, "living": 0}
