"""With a real model: an Aligner of a few thousand parameters, trained on the spot, behind every form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama import QUERIES, ScriptedLLM, async_streaming, call, node, rag, read, streaming
from llama_index.core.base.response.schema import AsyncStreamingResponse, Response
from llama_index.core.response_synthesizers import get_response_synthesizer

from aligner_chain import Aligner, Correction, Exchange
from aligner_chain.checkpoint import AlignerMetadata, write_metadata
from aligner_chain.llama_index import AlignerQueryEngine, AlignerResponsePostprocessor, AlignerSynthesizer
from aligner_chain.templates import get_template

pytest.importorskip("torch", reason="the lowest versions are tested without local models")

import micro

from bootstrap.demo.models import new_model

QUESTION, ANSWER, RIGHT = "say tea sun", "tea sun is bad", "tea sun is good"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, trained without the trainers' frameworks, which take longer to load than this to learn."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    tokenizer, template = micro.tokenizer(), get_template("aligner-chain/1")
    model = new_model(tokenizer, seed=1, hidden=32, layers=2)
    rows = []
    for question in micro.questions():
        for verdict, correction in (("bad", micro.answer(question, "good")), ("good", None)):
            exchange = Exchange.of(question, micro.answer(question, verdict))
            prompt = torch.tensor(template.render(exchange, tokenizer, window=None).prompt)
            target = torch.tensor(template.target(tokenizer, correction))
            rows.append((torch.cat([prompt, target]), torch.cat([torch.full_like(prompt, -100), target])))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    shuffled = torch.Generator().manual_seed(0)
    for _ in range(60):
        batch = [rows[place] for place in torch.randperm(len(rows), generator=shuffled)[:32].tolist()]
        ids, labels = (
            pad_sequence([row[part] for row in batch], batch_first=True, padding_value=padding)
            for part, padding in ((0, 0), (1, -100))
        )
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    made: Path = tmp_path_factory.mktemp("aligner")
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)
    write_metadata(made, AlignerMetadata(name="micro", version="1", template=template.name))
    return made


@pytest.fixture(scope="module")
def trained(folder: Path) -> Iterator[Aligner]:
    aligner = Aligner.from_pretrained(folder)
    yield aligner
    aligner.close()


@pytest.mark.parametrize("method", QUERIES)
@pytest.mark.parametrize("form", ["synthesizer", "query engine"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_real_aligner_corrects(method: str, form: str, stream: bool, trained: Aligner, told: Any) -> None:
    postprocessor = AlignerResponsePostprocessor(trained, use_context=False, on_correction=told.append)
    inner = get_response_synthesizer(llm=ScriptedLLM(reply=ANSWER), streaming=stream)
    engine: Any = rag(AlignerSynthesizer(inner, postprocessor))
    if form == "query engine":
        engine = AlignerQueryEngine(rag(inner), postprocessor)
    response = await call(engine, method, QUESTION)
    assert await read(response) == RIGHT
    assert response.metadata["aligner"]["aligner"] == "micro@1"
    assert told[0].usage.forwards > 0


async def test_pieces_arrive_before_the_end(trained: Aligner, told: list[Correction]) -> None:
    unchecked = AlignerResponsePostprocessor(trained, stream_unchecked=True, on_correction=told.append)
    for given in (streaming(ANSWER), async_streaming(ANSWER)):
        response: Any = unchecked.postprocess_response(given, query_str=QUESTION)
        told.clear()
        if isinstance(given, AsyncStreamingResponse):
            pieces = [(piece, len(told)) async for piece in response.response_gen]
        else:
            pieces = [(piece, len(told)) for piece in response.response_gen]
        assert "".join(piece for piece, _ in pieces) == RIGHT
        assert pieces[0][1] == 0, "the first piece was out before the end was known"


def test_passages_that_do_not_fit_the_window_are_left_out_and_said(trained: Aligner) -> None:
    window = trained.engine.capabilities.window
    assert window
    given = Response(ANSWER, source_nodes=[node("tea sun " * window), node("tea")])
    result = AlignerResponsePostprocessor(trained).postprocess_response(given, query_str=QUESTION)
    assert (result.response, result.source_nodes) == (RIGHT, given.source_nodes)
    assert result.metadata["aligner"]["reason"] == "2 last passages left out to fit the window"


def test_a_folder_is_named(folder: Path) -> None:
    by_name = AlignerResponsePostprocessor(folder, use_context=False)
    again = AlignerResponsePostprocessor.from_json(by_name.to_json())
    for postprocessor in (by_name, again):
        assert postprocessor.postprocess_response(Response(ANSWER), query_str=QUESTION).response == RIGHT
