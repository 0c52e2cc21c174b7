"""The postprocessor as a component of LlamaIndex: written and read again, copied, misused, imported."""

from __future__ import annotations

import copy
import json
import pickle
import queue
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from llama import BAD, GOOD, QUESTION, ScriptedLLM, Shelf, call, node, rag
from llama_index.core import SummaryIndex
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import Response
from llama_index.core.callbacks import CallbackManager
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine
from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import BaseSynthesizer, get_response_synthesizer
from llama_index.core.schema import BaseComponent, MetadataMode, TextNode
from pydantic import ValidationError

from aligner_chain import Aligner, ConfigurationError, Correction
from aligner_chain.llama_index import (
    AlignerChatEngine,
    AlignerQueryEngine,
    AlignerResponsePostprocessor,
    AlignerSynthesizer,
)

SETTINGS: dict[str, Any] = {
    "on_error": "pass_through",
    "timeout": 3.5,
    "use_context": False,
    "metadata_mode": MetadataMode.NONE,
    "pydantic_field": "answer",
    "structured": "validate",
    "skip_texts": ("nothing",),
    "stream_unchecked": True,
    "keep_original": True,
    "upstream": "up@1",
}


def test_they_are_what_llama_index_takes_them_for() -> None:
    assert issubclass(AlignerResponsePostprocessor, BaseComponent)
    assert issubclass(AlignerSynthesizer, BaseSynthesizer)
    assert issubclass(AlignerQueryEngine, BaseQueryEngine)
    assert issubclass(AlignerChatEngine, BaseChatEngine)


@pytest.mark.parametrize("named", ["hub/id", Path("folder/of/it"), None])
def test_settings_are_written_and_read_again(named: Any) -> None:
    given = AlignerResponsePostprocessor(named, **SETTINGS)
    written = given.to_dict()
    assert written["class_name"] == "AlignerResponsePostprocessor"
    assert "on_correction" not in written
    again = [
        AlignerResponsePostprocessor.from_dict(written),
        AlignerResponsePostprocessor.from_dict(json.loads(json.dumps(given.to_dict()))),
        AlignerResponsePostprocessor.from_json(given.to_json()),
        pickle.loads(pickle.dumps(given)),
        copy.deepcopy(given),
    ]
    for one in again:
        assert (str(one.aligner) if named else one.aligner) == (str(named) if named else None)
        assert {name: getattr(one, name) for name in SETTINGS} == SETTINGS


def test_an_aligner_object_is_not_written(mend: Aligner) -> None:
    given = AlignerResponsePostprocessor(mend, on_correction=print, timeout=2)
    for again in (
        AlignerResponsePostprocessor.from_dict(given.to_dict()),
        AlignerResponsePostprocessor.from_json(given.to_json()),
        pickle.loads(pickle.dumps(given)),
    ):
        assert (again.aligner, again.timeout) == (None, 2)


def test_a_copy_shares_the_aligner(mend: Aligner) -> None:
    given = AlignerResponsePostprocessor(mend, on_correction=print, timeout=2)
    for copied in (copy.copy(given), copy.deepcopy(given), given.model_copy(), given.model_copy(deep=True)):
        assert (copied.aligner, copied.timeout) == (mend, 2)


def test_pickling_it_leaves_it_as_it_was(mend: Aligner, told: list[Correction]) -> None:
    def tell(correction: Correction) -> None:
        told.append(correction)

    given = AlignerResponsePostprocessor(mend, on_correction=tell)
    pickle.dumps(given)
    assert given.postprocess_response(Response(BAD), query_str=QUESTION).response == GOOD
    assert len(told) == 1


def test_copies_of_the_wrappers_share_the_aligner(mend: Aligner, llm: ScriptedLLM) -> None:
    synthesizer = AlignerSynthesizer(get_response_synthesizer(llm=llm), mend)
    for copied in (copy.copy(synthesizer), copy.deepcopy(synthesizer)):
        assert copied.synthesize(QUESTION, [node("one")]).response == GOOD
        assert copied.postprocessor.aligner is mend
    engine = AlignerQueryEngine(rag(get_response_synthesizer(llm=llm)), mend)
    for copied in (copy.copy(engine), copy.deepcopy(engine)):
        assert copied.query(QUESTION).response == GOOD


class Still(BaseSynthesizer):
    """A synthesizer that can be pickled, which those of LlamaIndex cannot."""

    def __init__(self) -> None:
        self._streaming = False

    def get_response(self, query_str: str, text_chunks: Any, **kw: Any) -> str:
        return BAD

    aget_response = get_response

    def _get_prompts(self) -> dict[str, Any]:
        return {}

    def _update_prompts(self, prompts: Any) -> None:
        """It has none."""


def test_a_synthesizer_can_be_pickled_where_the_one_inside_can() -> None:
    synthesizer = AlignerSynthesizer(Still(), "hub/id")
    again = pickle.loads(pickle.dumps(synthesizer))
    assert (again.postprocessor.aligner, again._streaming) == ("hub/id", False)
    blank = AlignerSynthesizer.__new__(AlignerSynthesizer)
    with pytest.raises(AttributeError):
        _ = blank.postprocessor  # nothing inside yet, and no endless search for it


# Misuse


@pytest.mark.parametrize("way", ["constructor", "from_args", "index", "context", "condense plus context"])
def test_it_is_no_node_postprocessor(way: str, postprocessor: Any, llm: ScriptedLLM) -> None:
    settings: Any = {"llm": llm, "node_postprocessors": [postprocessor]}
    index = SummaryIndex(nodes=[TextNode(text="one")])
    build = {
        "constructor": lambda: RetrieverQueryEngine(
            Shelf("one"), get_response_synthesizer(llm=llm), node_postprocessors=[postprocessor]
        ),
        "from_args": lambda: RetrieverQueryEngine.from_args(Shelf("one"), **settings),
        "index": lambda: index.as_query_engine(**settings),
        "context": lambda: ContextChatEngine.from_defaults(Shelf("one"), **settings).chat(QUESTION),
        "condense plus context": lambda: CondensePlusContextChatEngine.from_defaults(Shelf("one"), **settings).chat(
            QUESTION
        ),
    }[way]
    with pytest.raises(ConfigurationError) as caught:
        build()
    for form in ("AlignerSynthesizer", "AlignerQueryEngine(", "AlignerChatEngine("):
        assert form in str(caught.value)
    assert llm.prompts == []


@pytest.mark.parametrize("method", ["postprocess_nodes", "apostprocess_nodes"])
async def test_called_for_nodes_it_says_where_it_belongs(method: str, postprocessor: Any) -> None:
    with pytest.raises(ConfigurationError, match="node_postprocessors"):
        await call(postprocessor, method, [], query_str=QUESTION)
    with pytest.raises(ConfigurationError, match="node_postprocessors"):
        postprocessor.callback_manager = CallbackManager()
    assert not hasattr(postprocessor, "callback_manager")


def test_it_can_be_shown(postprocessor: Any) -> None:
    assert "pass_through" in repr(AlignerResponsePostprocessor("hub/id", on_error="pass_through"))
    assert "on_correction" not in repr(postprocessor)
    assert postprocessor.class_name() == "AlignerResponsePostprocessor"
    assert AlignerResponsePostprocessor.model_json_schema is not None


def test_a_setting_that_is_changed_holds_from_then_on(postprocessor: Any) -> None:
    postprocessor.on_error = "pass_through"
    assert postprocessor.postprocess_response(Response("a crash"), query_str=QUESTION).response == "a crash"


# Imports

_LIGHT = """
import sys
import llama_index.core
before = set(sys.modules)
import aligner_chain.llama_index
heavy = {"torch", "transformers", "langchain_core", "trl", "bootstrap", "datasets"} & (set(sys.modules) - before)
assert not heavy, heavy
"""
_MISSING = """
import sys
sys.modules["llama_index"] = sys.modules["llama_index.core"] = None
try:
    import aligner_chain.llama_index
except ImportError as error:
    assert "pip install 'aligner-chain[llama-index]'" in str(error), error
else:
    raise SystemExit("imported without llama-index-core")
"""


@pytest.mark.parametrize("code", [_LIGHT, _MISSING], ids=["no heavy imports", "missing extra"])
def test_import(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


def test_settings_that_are_assigned_are_checked_as_well(mend: Aligner, told: list[Correction]) -> None:
    assigned: Any = AlignerResponsePostprocessor(mend)
    assigned.on_correction = told.append
    assert str(assigned.postprocess_response(Response(BAD), query_str=QUESTION)) == GOOD
    assert len(told) == 1
    with pytest.raises(ValidationError, match="greater than 0"):
        assigned.timeout = -1


def test_a_deep_copy_tells_the_same(mend: Aligner) -> None:
    heard: queue.SimpleQueue[Correction] = queue.SimpleQueue()  # holds a lock, which nobody can copy
    copied = copy.deepcopy(AlignerResponsePostprocessor(mend, on_correction=heard.put))
    copied.postprocess_response(Response(BAD), query_str=QUESTION)
    assert heard.get_nowait().text == GOOD


def test_what_is_no_aligner_or_no_function_is_told_what_to_give(mend: Aligner) -> None:
    wrong: Any = ScriptedLLM()
    with pytest.raises(TypeError, match=r"Aligner\.from_chat_model\(chat_model\)"):
        AlignerSynthesizer(get_response_synthesizer(llm=wrong), wrong)
    with pytest.raises(TypeError, match=r"on_correction takes a function"):
        AlignerResponsePostprocessor(mend, on_correction=[])
