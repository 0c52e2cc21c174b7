"""Chains put together wrong: each is answered with what was found and how it is written."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from aligner_chain import Aligner, PromptNotFoundError
from aligner_chain.langchain import AlignedChatModel, AlignerCorrector, AlignerMiddleware, aligner_node


def says(text: str) -> FakeListChatModel:
    return FakeListChatModel(responses=[text])


def test_a_chat_model_is_no_aligner() -> None:
    with pytest.raises(TypeError, match=r"Aligner\.from_chat_model\(chat_model\)"):
        AlignerCorrector(says("A."))


def test_a_corrector_without_its_brackets_says_so() -> None:
    with pytest.raises(TypeError, match=r"leave out no brackets:  llm \| AlignerCorrector\(\)"):
        (says("A.") | AlignerCorrector).invoke("Q?")


@pytest.mark.parametrize("given", [[], "print"], ids=["a list", "a name"])
def test_on_correction_is_a_function(aligner: Aligner, given: Any) -> None:
    with pytest.raises(TypeError, match=r"on_correction takes a function .* corrections\.append .*\.submit"):
        AlignerCorrector(aligner, on_correction=given)


def test_a_corrector_before_the_model_is_told_its_place(prompt: ChatPromptTemplate, aligner: Aligner) -> None:
    with pytest.raises(PromptNotFoundError, match=r"stands behind the one .*  llm \| AlignerCorrector\(\)"):
        (AlignerCorrector(aligner) | says("A.")).invoke("Q?")
    with pytest.raises(TypeError, match=r"right after the model"):
        (prompt | AlignerCorrector(aligner) | says("A.")).invoke({"q": "Q?"})


@pytest.mark.parametrize("given", ["the Aligner", "the class"])
def test_an_aligner_in_the_place_of_its_corrector_is_told_to_be_put_into_one(given: str, aligner: Aligner) -> None:
    wrong: Any = {"the Aligner": aligner, "the class": AlignerCorrector}[given]
    for make in (AlignerMiddleware, aligner_node, lambda it: AlignedChatModel(llm=says("A."), corrector=it)):
        with pytest.raises(TypeError, match=r"Make one:  AlignerCorrector\(aligner\)"):
            make(wrong)


def test_a_corrector_with_a_config_is_one(aligner: Aligner) -> None:
    bound: Any = AlignerCorrector(aligner).with_config(tags=["x"])
    assert AlignerMiddleware(bound).corrector is bound


def test_a_chain_that_ends_in_a_text_plays_an_aligner() -> None:
    corrector = AlignerCorrector(Aligner.from_chat_model(says("FIX\nGood.") | StrOutputParser()))
    assert (says("Bad.") | corrector).invoke("Q?").text == "Good."
