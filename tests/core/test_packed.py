"""The packed decoder against `generate`: whatever is drafted, joins, leaves or grows, the text stays the same."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import exactness
import pytest
import torch
from exactness import EOS, VOCABULARY, Vocabulary, divergences, greedy, random_cases, random_model
from transformers import BloomConfig, BloomForCausalLM

from aligner_chain.engines.base import Draft, Request
from aligner_chain.engines.drafting import CPU_FP32
from aligner_chain.engines.huggingface import HuggingFaceEngine
from aligner_chain.engines.packed import Memory, Segment, forward, prepare

CASES = 40


def draft_of(*ids: int, lead: tuple[int, ...] = ()) -> Draft:
    return Draft(ids=ids, spans=tuple((at, at + 1) for at in range(len(ids))), lead=lead)


@pytest.mark.parametrize("family", exactness.FAMILIES)
def test_any_draft_any_batch_any_family_gives_the_greedy_text(family: str) -> None:
    source = random.Random(family)
    model = random_model(family)
    engine = HuggingFaceEngine(model, Vocabulary(), max_batch=source.choice((1, 3, 32)))
    assert engine.plain_reason is None
    cases = random_cases(model, CASES, source)
    done, wrong = divergences(engine, cases, source)
    engine.close()
    assert done > CASES * 3 // 4
    assert wrong == []
    # Otherwise nothing was tried: outputs that end by themselves, and such that do not.
    assert len({len(case.output) for case in cases}) > CASES // 4


def test_an_open_row_that_fails_every_time_holds_nobody_up() -> None:
    def fail(_module: Any, _args: Any, given: dict[str, Any]) -> None:
        if (given["input_ids"] == 9).any():
            raise RuntimeError("no nines")

    model = random_model("Llama")
    engine = HuggingFaceEngine(model, Vocabulary())
    model.register_forward_pre_hook(fail, with_kwargs=True)
    ticket = engine.open(Request(key="open", prompt=(9,) * 20))
    assert "no nines" in str(ticket.future.exception(20))
    other = engine.submit([Request(key="other", prompt=(5, 7, 3), max_new=4)])[0]
    assert tuple(other.result(20).ids) == greedy(model, (5, 7, 3), 4)
    engine.close()


@pytest.mark.parametrize("window", [None, 5])
def test_a_comb_of_branches_sees_only_its_own(window: int | None) -> None:
    """Each branch gives the logits that it gives alone."""
    family = "Llama" if window is None else "Mistral, sliding"
    model = random_model(family)
    assert prepare(model) is None
    source = random.Random(0)
    for _ in range(20):
        prompt = [source.randrange(2, VOCABULARY) for _ in range(source.randint(1, 20))]
        read = source.randint(0, len(prompt) - 1)
        branches = [[source.randrange(2, VOCABULARY) for _ in range(source.randint(1, 6))] for _ in range(3)]
        packed = _behind(model, prompt, read, branches)
        alone = [_behind(model, prompt, 0, [branch])[1:] for branch in branches]
        assert torch.allclose(packed, torch.cat([packed[:1], *alone]), atol=1e-9)
        with torch.no_grad():
            whole = model(torch.tensor([[*prompt, *branches[0]]])).logits[0, len(prompt) - 1 :]
        assert torch.allclose(packed[: len(whole)], whole, atol=1e-9)


@torch.inference_mode()
def _behind(model: Any, prompt: list[int], read: int, branches: list[list[int]]) -> torch.Tensor:
    memory = Memory(4)
    if read:
        forward(model, [Segment(memory, prompt[:read], answered=False)])
        memory.length = read
    return forward(model, [Segment(memory, prompt[read:], branches)])


@contextmanager
def widths(model: Any) -> Iterator[list[int]]:
    """The tokens of every forward."""
    seen: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    yield seen
    handle.remove()


def test_a_right_draft_costs_one_forward() -> None:
    model, prompt = random_model("Llama"), tuple(range(2, 30))
    output = greedy(model, prompt, 30)
    engine = HuggingFaceEngine(model, Vocabulary(), curve=CPU_FP32)
    with widths(model) as tokens:
        [ticket] = engine.submit([Request(key="", prompt=prompt, max_new=30, draft=draft_of(*output))])
        generation = ticket.result(30)
    engine.close()
    assert generation.ids == output
    assert (generation.usage.forwards, generation.usage.accepted_draft_tokens) == (1, 29)
    assert tokens == [28 + 29]


def test_a_verdict_to_keep_costs_the_prompt_and_one_token_in_batches_too() -> None:
    model, source = random_model("Llama"), random.Random(0)
    prompts = [tuple(source.randrange(2, VOCABULARY) for _ in range(source.randint(5, 60))) for _ in range(12)]
    asked = [
        Request(
            key=str(at),
            prompt=prompt,
            max_new=40,
            draft=draft_of(*range(10, 40), lead=(9,)),
            choices=(8, 9),
            stop_ids=(8,),
            bias={8: 1e6},
        )
        for at, prompt in enumerate(prompts)
    ]
    engine = HuggingFaceEngine(model, Vocabulary(), curve=CPU_FP32)
    with widths(model) as tokens:
        kept = [ticket.result(30) for ticket in engine.submit(asked)]
    engine.close()
    assert {(one.finish, one.ids, one.usage.forwards) for one in kept} == {("stop", (), 1)}
    assert sum(tokens) == sum(map(len, prompts))


def test_behind_a_verdict_to_fix_the_answer_is_drafted_as_a_whole() -> None:
    model, prompt = random_model("Llama"), tuple(range(2, 30))
    output = greedy(model, prompt, 30)
    engine = HuggingFaceEngine(model, Vocabulary(), curve=CPU_FP32)
    draft = draft_of(*output[1:], lead=output[:1])
    request = Request(key="", prompt=prompt, max_new=30, draft=draft, choices=(7, output[0]), stop_ids=(7,))
    with widths(model) as tokens:
        [ticket] = engine.submit([request])
        generation = ticket.result(30)
    engine.close()
    assert generation.ids == output
    assert tokens == [28, 29]
    assert generation.draft_logprobs is not None
    assert len(generation.draft_logprobs) == 29
    # The last one was never looked at: the output could not have been longer.
    assert [math.isnan(one) for one in generation.draft_logprobs] == [False] * 28 + [True]


def test_a_streamed_row_tells_its_first_tokens_after_a_short_forward() -> None:
    model, prompt = random_model("Llama"), tuple(range(2, 30))
    output = greedy(model, prompt, 30)
    engine = HuggingFaceEngine(model, Vocabulary(), curve=CPU_FP32)
    with widths(model) as tokens:
        [ticket] = engine.submit([Request(key="", prompt=prompt, max_new=30, draft=draft_of(*output), stream=True)])
        assert ticket.result(30).ids == output
    engine.close()
    assert tuple(ticket.ids) == output
    assert tokens == [28 + 16, 1 + 12]


def test_a_question_that_was_read_before_is_not_read_again() -> None:
    model = random_model("Llama")
    engine = HuggingFaceEngine(model, Vocabulary())
    with widths(model) as tokens:
        for last in (3, 4):
            prompt = (*range(2, 42), last)
            tokens.clear()
            [ticket] = engine.submit([Request(key="", prompt=prompt, max_new=8)])
            written = ticket.result(30).ids
            assert tokens[0] == (41 if last == 3 else 1)
            assert written == greedy(model, prompt, 8)
    engine.close()


def test_what_was_fed_while_the_upstream_wrote_is_not_read_again() -> None:
    model, prompt = random_model("Llama"), tuple(range(2, 42))
    engine = HuggingFaceEngine(model, Vocabulary())
    ticket = engine.open(Request(key=""))
    with widths(model) as tokens:
        for end in (10, 30, 36):
            ticket.feed((*prompt[:end], 60))
            _until(lambda end=end: sum(tokens) >= end)
        tokens.clear()
        ticket.seal(Request(key="", prompt=prompt, max_new=8))
        written = ticket.result(30).ids
        assert tokens[0] == len(prompt) - 36
    engine.close()
    assert written == greedy(model, prompt, 8)


def _until(true: Any) -> None:
    ends = time.monotonic() + 30
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.005)


def test_an_open_ticket_is_closed_with_the_engine_and_leaves_when_cancelled() -> None:
    engine = HuggingFaceEngine(random_model("Llama"), Vocabulary())
    left, cancelled = engine.open(Request(key="")), engine.open(Request(key=""))
    for ticket in (left, cancelled):
        ticket.feed((2, 3, 4))
    cancelled.cancel()
    engine.close()
    assert left.future.result(1).finish == "cancelled"
    assert cancelled.future.done()
    assert engine._batch is None


def test_a_model_that_does_not_fit_takes_the_plain_path_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    config = BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, eos_token_id=EOS)
    model = BloomForCausalLM(config).double().eval()
    with caplog.at_level(logging.WARNING, logger="aligner_chain"):
        engine = HuggingFaceEngine(model, Vocabulary())
    assert engine.plain_reason == "its attention cannot be replaced through transformers"
    assert "BloomForCausalLM is decoded without drafts" in caplog.text
    assert not engine.capabilities.overlap
    [ticket] = engine.submit([Request(key="", prompt=(2, 3), max_new=9, draft=draft_of(2, 3, 4))])
    assert ticket.result(30).ids == greedy(model, (2, 3), 9)
    engine.close()


def test_others_can_use_the_model_as_before() -> None:
    model, untouched = random_model("Llama"), random_model("Llama")
    engine = HuggingFaceEngine(model, Vocabulary())
    ids, mask = torch.tensor([[0, 0, 5, 6], [5, 6, 7, 8]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    losses = [one(ids, attention_mask=mask, labels=ids).loss for one in (model, untouched)]
    for loss in losses:
        loss.backward()
    assert torch.equal(*losses)
    gradients = [one.model.layers[0].self_attn.q_proj.weight.grad for one in (model, untouched)]
    assert torch.equal(*gradients)
    assert greedy(model, (5, 6), 9) == greedy(untouched, (5, 6), 9)
    engine.close()
