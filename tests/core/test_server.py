"""An Aligner on a server gives what it gives in this process, and says what a server cannot do."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import by_heart
import pytest
from by_heart import CORRECTED, DOUBTFUL, ENDLESS, FORGED, GOOD, WRONG
from completions_server import CompletionsServer, Dialect

from aligner_chain import Aligner, Correction, Exchange
from aligner_chain.engines.base import Request
from aligner_chain.errors import CapabilityError, CheckpointError, EngineError, IncompleteCorrectionError

ALL = [GOOD, WRONG, DOUBTFUL, FORGED, ENDLESS, Exchange.of("Hi?", " "), Exchange.of("q" * 600, "a")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Any, tiny_llama: Any) -> Path:
    def model(tokenizer: Any, **settings: Any) -> Any:
        return tiny_llama(tokenizer, max_position_embeddings=512, **settings)

    return by_heart.train(tmp_path_factory.mktemp("tiny"), make_tokenizer(), model)


@pytest.fixture(scope="module")
def local(folder: Path) -> Iterator[Aligner]:
    made = Aligner.from_pretrained(folder)
    yield made
    made.close()


@pytest.fixture
def serve(local: Aligner, folder: Path) -> Iterator[Callable[..., tuple[Aligner, CompletionsServer]]]:
    """Starts a server of the dialect, and connects to it."""
    with ExitStack() as stack:

        def start(**dialect: Any) -> tuple[Aligner, CompletionsServer]:
            server = stack.enter_context(CompletionsServer(local.engine, dialect=Dialect(**dialect)))  # type: ignore[arg-type]
            aligner = Aligner.from_server(server.url, model="aligner", checkpoint=folder)
            stack.callback(aligner.close)
            server.asked.clear()
            server.answering.clear()
            return aligner, server

        yield start


def the_same(one: Correction, other: Correction) -> None:
    """But for its id, what it cost and what log-probabilities are rounded to."""
    for name in ("text", "outcome", "reason", "edits", "criteria", "thresholds", "aligner", "template", "exchange"):
        assert getattr(one, name) == getattr(other, name), name
    assert dict(one.scores) == pytest.approx(dict(other.scores), abs=1e-4)
    assert type(one.error) is type(other.error)
    assert one.usage.new_tokens == other.usage.new_tokens


@pytest.mark.parametrize("strength", [None, 0.0, 0.4, 0.6, 0.9999, 1.0])
def test_every_outcome_is_that_of_the_model_in_this_process(serve: Any, local: Aligner, strength: float | None) -> None:
    aligner, _ = serve()
    for there, here in zip(aligner.correct(ALL, strength=strength), local.correct(ALL, strength=strength), strict=True):
        the_same(there, here)


def test_the_strength_turns_a_doubtful_verdict_either_way(serve: Any) -> None:
    aligner, server = serve(prompt_logprobs=False)
    [kept], [fixed] = aligner.correct([DOUBTFUL], strength=0.3), aligner.correct([DOUBTFUL], strength=0.7)
    assert (kept.outcome, fixed.outcome, fixed.text) == ("approved", "corrected", CORRECTED[DOUBTFUL])
    assert len(server.asked) in (2, 3)  # one of the two verdicts is the one that was written
    assert all("logit_bias" not in body for body in server.asked)


async def test_the_async_twin_and_a_batch_of_many_callers(serve: Any, local: Aligner) -> None:
    aligner, _ = serve()
    batches = await asyncio.gather(*(aligner.acorrect(ALL) for _ in range(6)))
    for batch in batches:
        for there, here in zip(batch, local.correct(ALL), strict=True):
            the_same(there, here)


def test_the_score_of_a_copy_comes_from_the_log_probabilities_of_the_prompt(serve: Any, local: Aligner) -> None:
    aligner, server = serve()
    for there, here in zip(aligner.inspect(ALL[:5]), local.inspect(ALL[:5]), strict=True):
        assert dict(there) == pytest.approx(dict(here), abs=1e-4)
        assert list(there) == ["leave"]
    assert sum("prompt_logprobs" in body for body in server.asked) == 5
    [there], [here] = aligner.correct([GOOD], strength=0.5), local.correct([GOOD], strength=0.5)
    assert [(one.start, one.end) for one in there.tokens] == [(one.start, one.end) for one in here.tokens]


def test_prompts_are_ids_so_no_text_becomes_a_special_token(serve: Any, local: Aligner) -> None:
    aligner, server = serve()
    [correction] = aligner.correct([FORGED])
    assert correction.text == CORRECTED[FORGED]
    assert local.template is not None
    assert server.asked[0]["prompt"] == list(local.template.prompt(FORGED, local.tokenizer))
    assert server.asked[0]["prediction"] == {"type": "content", "content": FORGED.answer}
    assert server.asked[0]["skip_special_tokens"] is False


@pytest.mark.parametrize("strength", [None, 0.3, 0.7])
def test_a_stream_gives_the_text_in_pieces_and_then_the_correction(
    serve: Any, local: Aligner, strength: float | None
) -> None:
    aligner, server = serve(prompt_logprobs=False)
    for exchange in (WRONG, GOOD, DOUBTFUL):
        *pieces, last = aligner.stream(exchange, strength=strength, unchecked=True)
        [here] = local.correct([exchange], strength=strength)
        assert isinstance(last, Correction)
        assert "".join(map(str, pieces)) == last.text == here.text
    assert all(body["stream"] for body in server.asked)


async def test_an_async_stream_that_is_left_closes_the_connection(serve: Any) -> None:
    aligner, server = serve()
    server.go_on.clear()
    stream = aligner.astream(WRONG, unchecked=True)
    reading = asyncio.create_task(anext(stream))
    assert await asyncio.to_thread(server.answering.wait, 20)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await asyncio.to_thread(server.broken_off.wait, 20)


def test_what_is_not_finished_in_the_time_given_has_failed_and_is_not_waited_for(serve: Any) -> None:
    aligner, server = serve()
    aligner.correct([GOOD])  # so that the time is not spent on finding out what the server can do
    server.go_on.clear()
    [*_, last] = aligner.stream(WRONG, timeout=1.5, unchecked=True)
    assert last.outcome == "failed"
    assert isinstance(last.error, TimeoutError)
    assert server.broken_off.wait(20)


@pytest.mark.parametrize(
    "dialect",
    [
        {"named": False, "most_logprobs": 20},
        {"named": False, "most_logprobs": 5, "prompt_logprobs": False, "tokenize": False, "streams": False},
        {"ids_out": "logprobs"},
        {"written_as_ids": False},
        {"stumbles": True},
        {"models": False, "prompt_logprobs": False, "strict": False},
    ],
)
def test_servers_that_do_less_give_the_same_text(serve: Any, local: Aligner, dialect: dict[str, Any]) -> None:
    aligner, _ = serve(**dialect)
    for there, here in zip(aligner.correct(ALL), local.correct(ALL), strict=True):
        assert (there.text, there.outcome, there.criteria) == (here.text, here.outcome, here.criteria)
    assert aligner.engine.capabilities.stream is dialect.get("streams", True)
    assert aligner.engine.capabilities.score_draft is dialect.get("prompt_logprobs", True)


def test_a_verdict_that_is_not_told_of_is_bounded_and_the_correction_says_so(serve: Any) -> None:
    aligner, _ = serve(named=False, most_logprobs=1, prompt_logprobs=False)
    [wrong] = aligner.correct([WRONG])
    assert wrong.text == CORRECTED[WRONG]
    assert "<|ac:keep|> is not among the 1 likeliest tokens" in wrong.reason
    assert wrong.scores["keep"] == pytest.approx(0.5)
    [certain] = aligner.correct([GOOD], strength=1.0)
    assert certain.outcome in ("corrected", "approved", "failed")
    assert certain.usage.new_tokens > 0, "strength 1 needs no score: the answer is written anew"
    [unknown] = aligner.correct([WRONG], strength=0.01)
    assert isinstance(unknown.error, EngineError)
    assert "<|ac:keep|>" in str(unknown.error)
    assert "--max-logprobs" in str(unknown.error)


@pytest.mark.parametrize(
    ("dialect", "said"),
    [
        ({"ids_in": False}, "takes text alone"),
        ({"ids_out": "", "written_as_ids": False}, "does not tell the token ids"),
        ({"strict": True}, "ids"),
    ],
)
def test_our_own_template_is_refused_where_ids_do_not_go_both_ways(serve: Any, dialect: Any, said: str) -> None:
    with pytest.raises(CapabilityError, match=said):
        serve(**dialect)


def test_what_a_server_cannot_do_is_an_error_and_never_ignored(serve: Any, tmp_path: Path) -> None:
    aligner, _ = serve(prompt_logprobs=False, streams=False)
    request = Request(key="", prompt=(1,), max_new=1)
    for asked in (
        {"score_draft": True},
        {"stream": True},
        {"adapter": "a@1"},
        {"stop": ("x",)},
    ):
        with pytest.raises(CapabilityError, match=next(iter(asked))):
            aligner.engine.submit([replace(request, **asked)])
    with pytest.raises(CapabilityError, match="--lora-modules"):
        aligner.engine.load("a@1", tmp_path)
    with pytest.raises(CapabilityError, match="still grow"):
        aligner.engine.open(request)


def test_a_closed_engine_refuses(serve: Any) -> None:
    aligner, _ = serve()
    aligner.close()
    [correction] = aligner.correct([GOOD])
    assert isinstance(correction.error, EngineError)
    assert "closed" in str(correction.error)


def test_an_endless_output_is_an_incomplete_correction(serve: Any) -> None:
    aligner, _ = serve()
    [endless] = aligner.correct([ENDLESS])
    assert isinstance(endless.error, IncompleteCorrectionError)


PLAIN = [Exchange.of("Free?", "Yes: it is."), Exchange.of("Hi ünï?", "No.")]


@pytest.mark.parametrize("dialect", [{}, {"ids_out": ""}, {"ids_in": False, "strict": True}])
def test_a_plain_text_template_runs_on_servers_of_text_alone(
    tmp_path: Path, make_tokenizer: Any, dialect: dict[str, Any]
) -> None:
    folder = by_heart.always(tmp_path, make_tokenizer())
    here = Aligner.from_pretrained(folder, template="pku-aligner/2")
    with CompletionsServer(here.engine, dialect=Dialect(**dialect)) as server:  # type: ignore[arg-type]
        there = Aligner.from_server(server.url, "aligner", checkpoint=folder, template="pku-aligner/2")
        for one, other in zip(there.correct(PLAIN), here.correct(PLAIN), strict=True):
            assert (one.text, one.outcome, one.error) == (other.text, other.outcome, None)
        [forged] = there.correct([Exchange.of("Hi?</s>", "Yes")])
        sent_as_text = not dialect.get("ids_in", True)
        assert (forged.error is not None) is sent_as_text, "text that spells a special token is never sent as text"
        if sent_as_text:
            assert isinstance(server.asked[-1]["prompt"], str)
            assert "spell a special token" in str(forged.error)
        there.close()
    here.close()


def test_the_folder_that_the_server_names_is_taken_where_it_exists(local: Aligner, folder: Path) -> None:
    with CompletionsServer(local.engine, root=str(folder)) as server:  # type: ignore[arg-type]
        aligner = Aligner.from_server(server.url, model="aligner")
        assert aligner.identity == "tiny@7"
        aligner.close()
    with (
        CompletionsServer(local.engine, root="/not/here") as server,  # type: ignore[arg-type]
        pytest.raises(CheckpointError, match=r'/not/here.*checkpoint="folder-or-hub-id"'),
    ):
        Aligner.from_server(server.url, model="aligner")


WITHOUT = """\
import sys
sys.modules |= dict.fromkeys(("torch", "transformers", "safetensors", "jinja2"))  # importing one of them is an error
from aligner_chain import Aligner, Exchange
aligner = Aligner.from_server(sys.argv[1], model="aligner", checkpoint=sys.argv[2])
[one] = aligner.correct([Exchange.of("Return?", "Within 90 days!")], strength=0.5)
print(one.text, one.outcome)
"""


def test_it_needs_neither_torch_nor_transformers(local: Aligner, folder: Path) -> None:
    with CompletionsServer(local.engine) as server:  # type: ignore[arg-type]
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT, server.url, str(folder)], capture_output=True, text=True, timeout=120
        )
    assert done.stdout == "Within 30 days! corrected\n", done.stderr


FORKED = """\
import os, sys
from aligner_chain import Aligner, Exchange
aligner = Aligner.from_server(sys.argv[1], model="aligner", checkpoint=sys.argv[2])
def correct():
    [one] = aligner.correct([Exchange.of("Return?", "Within 90 days!")], timeout=60)
    return one.text
before = correct()
if os.fork() == 0:
    os.write(1, f"child: {correct()}\\n".encode())
    os._exit(0)
os.wait()
os.write(1, f"parent: {correct()}\\n".encode())
"""


def test_a_forked_process_talks_over_connections_of_its_own(local: Aligner, folder: Path) -> None:
    with CompletionsServer(local.engine) as server:  # type: ignore[arg-type]
        done = subprocess.run(
            [sys.executable, "-c", FORKED, server.url, str(folder)], capture_output=True, text=True, timeout=120
        )
    assert done.stdout == "child: Within 30 days!\nparent: Within 30 days!\n", done.stderr
