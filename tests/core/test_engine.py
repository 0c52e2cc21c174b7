"""The engine against the slow obvious way: one row at a time with `model.generate` and plain forwards."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from aligner_chain.engines import huggingface
from aligner_chain.engines.base import Draft, Generation, Request, Sampling
from aligner_chain.engines.huggingface import HuggingFaceEngine
from aligner_chain.errors import ContextOverflowError, EngineError

NEW = 24


def prompts(count: int, longest: int = 40, seed: int = 0) -> list[tuple[int, ...]]:
    source = random.Random(seed)
    return [tuple(source.randrange(256) for _ in range(source.randint(1, longest))) for _ in range(count)]


def requests(count: int, **settings: Any) -> list[Request]:
    settings = {"max_new": NEW, **settings}
    return [Request(key=str(number), prompt=prompt, **settings) for number, prompt in enumerate(prompts(count))]


def run(engine: HuggingFaceEngine, asked: list[Request]) -> list[Generation]:
    return [ticket.result(60) for ticket in engine.submit(asked)]


def draft_of(*ids: int) -> Draft:
    return Draft(ids=ids, spans=tuple((at, at + 1) for at in range(len(ids))))


@contextmanager
def engine_of(model: Any, tokenizer: Any, **settings: Any) -> Iterator[HuggingFaceEngine]:
    engine = HuggingFaceEngine(model, tokenizer, **settings)
    yield engine
    engine.close()


def with_common_eos(model: Any, tokenizer: Any) -> None:
    """Makes EOS likely enough that rows of random models end at different steps."""
    with torch.no_grad():
        rows = model.get_output_embeddings().weight
        rows[tokenizer.eos_token_id] = 2.5 * rows[0]


@torch.no_grad()
def by_generate(model: Any, request: Request, eos: int) -> list[int]:
    ids = torch.tensor([request.prompt])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=request.max_new, do_sample=False, pad_token_id=0
    )[0, ids.shape[1] :].tolist()
    return output[:-1] if output and output[-1] == eos else output


@torch.no_grad()
def by_one_forward(model: Any, prompt: tuple[int, ...], draft: tuple[int, ...]) -> list[float]:
    logits = model(torch.tensor([[*prompt, *draft]])).logits[0].log_softmax(-1)
    return [logits[len(prompt) - 1 + at, token].item() for at, token in enumerate(draft)]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("max_batch", [64, 5])
def test_a_batch_decodes_as_generate_does_row_by_row(
    dtype: str, max_batch: int, tokenizer: Any, tiny_llama: Any
) -> None:
    model = tiny_llama(tokenizer, dtype=dtype)
    with_common_eos(model, tokenizer)
    asked = requests(30)
    with engine_of(model, tokenizer, max_batch=max_batch) as engine:
        batched = run(engine, asked)
        alone = [run(engine, [request])[0] for request in asked]
    assert [one.ids for one in batched] == [one.ids for one in alone]
    for request, generation in zip(asked, batched, strict=True):
        assert list(generation.ids) == by_generate(model, request, tokenizer.eos_token_id)
        assert generation.finish == ("eos" if len(generation.ids) < NEW else "length")
        ended = generation.finish == "eos"
        assert generation.usage.new_tokens == len(generation.ids)
        assert generation.usage.prompt_tokens == len(request.prompt)
        assert generation.usage.forwards == len(generation.ids) + ended
    # Otherwise neither leaving the batch nor staying to the end was tried.
    assert {one.finish for one in batched} == {"eos", "length"}
    assert len({len(one.ids) for one in batched}) > 3


def test_sliding_windows_and_models_with_learned_positions(tokenizer: Any) -> None:
    torch.manual_seed(0)
    size = {"vocab_size": len(tokenizer), "initializer_range": 0.4, "eos_token_id": tokenizer.eos_token_id}
    mistral = MistralConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=16,
        max_position_embeddings=256,
        **size,
    )
    gpt2 = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=0, **size)
    for model in (MistralForCausalLM(mistral).double().eval(), GPT2LMHeadModel(gpt2).double().eval()):
        asked = [
            Request(key=str(at), prompt=prompt, max_new=NEW, draft=draft_of(*range(at % 7)), score_draft=True)
            for at, prompt in enumerate(prompts(12))
        ]
        with engine_of(model, tokenizer) as engine:
            assert engine.capabilities.window == 256
            batched = run(engine, asked)
        for request, generation in zip(asked, batched, strict=True):
            assert list(generation.ids) == by_generate(model, request, tokenizer.eos_token_id)
            assert request.draft is not None
            *expected, end = by_one_forward(model, request.prompt, (*request.draft.ids, tokenizer.eos_token_id))
            assert generation.draft_logprobs == pytest.approx(expected, abs=1e-9)
            assert not expected or generation.draft_end_logprob == pytest.approx(end, abs=1e-9)


def test_log_probabilities_of_drafts_and_choices(tokenizer: Any, tiny_llama: Any) -> None:
    model = tiny_llama(tokenizer)
    source = random.Random(1)
    asked = [
        Request(
            key=str(at),
            prompt=prompt,
            max_new=4 if at % 2 else 0,
            draft=draft_of(*(source.randrange(256) for _ in range(source.randint(0, 9)))),
            score_draft=at % 3 != 0,
            choices=(7, 9),
            bias={7: 50.0} if at % 4 == 1 else {},
        )
        for at, prompt in enumerate(prompts(12))
    ]
    with engine_of(model, tokenizer) as engine:
        generations = run(engine, asked)
    for request, generation in zip(asked, generations, strict=True):
        assert request.draft is not None
        chosen = [by_one_forward(model, request.prompt, (token,))[0] for token in (7, 9)]
        assert [generation.choice_logprobs[token] for token in (7, 9)] == pytest.approx(chosen, abs=1e-9)
        if request.score_draft:
            *expected, end = by_one_forward(model, request.prompt, (*request.draft.ids, tokenizer.eos_token_id))
            assert generation.draft_logprobs == pytest.approx(expected, abs=1e-9)
            assert not expected or generation.draft_end_logprob == pytest.approx(end, abs=1e-9)
        elif generation.draft_logprobs is not None:
            expected = by_one_forward(model, request.prompt, request.draft.ids)
            seen = [(one, right) for one, right in zip(generation.draft_logprobs, expected, strict=True) if one == one]
            assert [one for one, _ in seen] == pytest.approx([right for _, right in seen], abs=1e-9)
            # Looked at as far as it was drafted, which is no farther than the output could have been.
            assert len(seen) == min(max(request.max_new - 1, 0), len(request.draft.ids))
        if request.max_new == 0:
            assert (generation.ids, generation.finish, generation.usage.forwards) == ((), "length", 1)
        elif request.bias:
            assert generation.ids[0] == 7
        else:
            assert list(generation.ids) == by_generate(model, request, tokenizer.eos_token_id)


def test_a_bias_moves_the_first_position_only(tokenizer: Any, tiny_llama: Any) -> None:
    model = tiny_llama(tokenizer)
    [plain] = prompts(1)
    with engine_of(model, tokenizer) as engine:
        [generation] = run(engine, [Request(key="", prompt=plain, max_new=6, bias={3: 1e6})])
    follow_up = Request(key="", prompt=(*plain, 3), max_new=5)
    assert generation.ids == (3, *by_generate(model, follow_up, tokenizer.eos_token_id))


def test_stop_ids_belong_to_their_row(tokenizer: Any, tiny_llama: Any) -> None:
    model = tiny_llama(tokenizer)
    asked = requests(6)
    with engine_of(model, tokenizer) as engine:
        free = run(engine, asked)
        stops = [one.ids[3 * (at % 2)] for at, one in enumerate(free)]
        stopped = run(
            engine,
            [
                Request(key=one.key, prompt=one.prompt, max_new=NEW, stop_ids=(stop,) if at < 4 else ())
                for at, (one, stop) in enumerate(zip(asked, stops, strict=True))
            ],
        )
    for at, (before, after) in enumerate(zip(free, stopped, strict=True)):
        expected = before.ids[: before.ids.index(stops[at])] if at < 4 else before.ids
        assert after.ids == expected
        assert after.finish == ("stop" if at < 4 else before.finish)


def test_approved_is_an_output_equal_to_the_draft(tokenizer: Any, tiny_llama: Any) -> None:
    model = tiny_llama(tokenizer)
    with_common_eos(model, tokenizer)
    with engine_of(model, tokenizer) as engine:
        asked = requests(30)
        ended = next(one for one in run(engine, asked) if one.finish == "eos")
        prompt = asked[int(ended.key)].prompt
        again = [
            Request(key="same", prompt=prompt, max_new=NEW, draft=draft_of(*ended.ids)),
            Request(key="other", prompt=prompt, max_new=NEW, draft=draft_of(*ended.ids, 1)),
        ]
        assert [one.approved for one in run(engine, again)] == [True, False]


def test_finished_rows_leave_the_batch(tokenizer: Any, tiny_llama: Any) -> None:
    model = tiny_llama(tokenizer)
    asked = [Request(key=str(at), prompt=prompt, max_new=(2, 4, 8, 8)[at % 4]) for at, prompt in enumerate(prompts(16))]
    sizes: list[int] = []
    with engine_of(model, tokenizer) as engine, hooked(model, sizes.append):
        run(engine, asked)
    assert sizes == [16, 16, 12, 12, 8, 8, 8, 8]


# --- sampling ---


def test_a_drawn_text_does_not_depend_on_its_neighbours(tokenizer: Any, tiny_llama: Any) -> None:
    model = tiny_llama(tokenizer)
    with_common_eos(model, tokenizer)
    asked = requests(20, sampling=Sampling(temperature=0.8, seed=3))
    with engine_of(model, tokenizer) as engine:
        batched = run(engine, asked)
        alone = [run(engine, [request])[0] for request in asked]
        reseeded = run(engine, requests(20, sampling=Sampling(temperature=0.8, seed=4)))
        mixed = run(engine, [*asked[:3], *requests(6)[3:]])
    assert [one.ids for one in batched] == [one.ids for one in alone]
    assert {one.finish for one in batched} == {"eos", "length"}
    assert sum(one.ids != other.ids for one, other in zip(batched, reseeded, strict=True)) > 15
    assert [one.ids for one in mixed[:3]] == [one.ids for one in batched[:3]]
    greedy = [by_generate(model, request, tokenizer.eos_token_id) for request in requests(6)[3:]]
    assert [list(one.ids) for one in mixed[3:]] == greedy


@pytest.mark.parametrize("temperature", [0.5, 1.5])
def test_tokens_are_drawn_with_their_probabilities(temperature: float, tokenizer: Any, tiny_llama: Any) -> None:
    model = tiny_llama(tokenizer)
    [prompt] = prompts(1)
    with torch.no_grad():
        expected = (model(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1)
    draws = 4000
    asked = [
        Request(key=str(at), prompt=prompt, max_new=1, sampling=Sampling(temperature=temperature))
        for at in range(draws)
    ]
    with engine_of(model, tokenizer, max_batch=1000) as engine:
        drawn = [one.ids[0] if one.ids else tokenizer.eos_token_id for one in run(engine, asked)]
    share = torch.bincount(torch.tensor(drawn), minlength=len(expected)) / draws
    # Five standard deviations, for every token.
    allowed = 5 * (expected * (1 - expected) / draws).sqrt() + 1 / draws
    assert ((share - expected).abs() <= allowed).all()


# --- many callers, one model ---


def _nothing(_result: object) -> None:
    """A hook's result would replace the arguments of the forward."""


@contextmanager
def hooked(model: Any, hook: Any) -> Iterator[None]:
    """Calls `hook(rows)` before every forward of the model; rows without drafts want one row of logits each."""

    def rows(kwargs: Any) -> int:
        kept = kwargs["logits_to_keep"]
        return len(kept) if isinstance(kept, torch.Tensor) else kwargs["input_ids"].shape[0]

    handle = model.register_forward_pre_hook(
        lambda _module, _args, kwargs: _nothing(hook(rows(kwargs))), with_kwargs=True
    )
    yield
    handle.remove()


def test_callers_share_batches(tokenizer: Any, tiny_llama: Any) -> None:
    model = tiny_llama(tokenizer)
    begun, all_there, sizes = threading.Event(), threading.Event(), []

    def hook(size: int) -> None:
        sizes.append(size)
        begun.set()
        assert all_there.wait(30)

    asked = requests(9, max_new=1)
    with engine_of(model, tokenizer) as engine, hooked(model, hook):
        first = engine.submit(asked[:1])
        assert begun.wait(30)
        rest: list[Any] = []
        callers = [threading.Thread(target=lambda one=one: rest.extend(engine.submit([one]))) for one in asked[1:]]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        all_there.set()
        results = {ticket.request.key: ticket.result(30).ids for ticket in [*first, *rest]}
    assert sizes == [1, 8]
    expected = {one.key: tuple(by_generate(model, one, tokenizer.eos_token_id)) for one in asked}
    assert results == expected


def test_rows_of_like_length_go_together(tokenizer: Any, tiny_llama: Any) -> None:
    lengths = [5, 100, 6, 101, 7, 102]
    asked = [Request(key=str(length), prompt=(1,) * length, max_new=1) for length in lengths]
    widths = []
    model = tiny_llama(tokenizer)
    handle = model.register_forward_pre_hook(
        lambda _module, _args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    with engine_of(model, tokenizer, max_batch=3, packed=False) as engine:
        run(engine, asked)
    handle.remove()
    assert widths == [7, 102]


def test_a_cancelled_row_leaves_at_its_next_step(tokenizer: Any, tiny_llama: Any) -> None:
    model = tiny_llama(tokenizer)
    asked = requests(3)
    tickets: list[Any] = []
    forwards = iter(range(1000))

    def hook(_size: int) -> None:
        if next(forwards) == 4:
            tickets[1].cancel()

    with engine_of(model, tokenizer) as engine:
        free = run(engine, asked)
        with hooked(model, hook):
            tickets += engine.submit(asked)
            results = [ticket.result(30) for ticket in tickets]
    # Cancelled during its fifth forward, so five tokens were chosen when it left.
    assert (results[1].finish, results[1].ids) == ("cancelled", free[1].ids[:5])
    assert [results[0], results[2]] == [_as(results[0], free[0]), _as(results[2], free[2])]


def _as(result: Generation, like: Generation) -> Generation:
    """`like` with the usage of `result`, whose time cannot be the same."""
    from dataclasses import replace

    return replace(like, usage=result.usage)


def test_a_row_cancelled_while_it_waits_is_never_run(tokenizer: Any, tiny_llama: Any) -> None:
    model = tiny_llama(tokenizer)
    begun, cancelled, sizes = threading.Event(), threading.Event(), []

    def hook(size: int) -> None:
        sizes.append(size)
        begun.set()
        assert cancelled.wait(30)

    with engine_of(model, tokenizer) as engine, hooked(model, hook):
        first = engine.submit(requests(1, max_new=1))
        assert begun.wait(30)
        waiting = engine.submit(requests(3, max_new=1))
        waiting[0].cancel()
        cancelled.set()
        assert len(waiting[1].result(30).ids) == len(waiting[2].result(30).ids) == len(first[0].result(30).ids) == 1
        with pytest.raises(CancelledError):
            waiting[0].result(30)
    assert sizes == [1, 2]


def test_a_deadline_ends_its_row_only(tokenizer: Any, tiny_llama: Any) -> None:
    model = tiny_llama(tokenizer)
    forwards = iter(range(1000))

    def pass_the_deadline(_size: int) -> None:
        if next(forwards) == 3:
            time.sleep(1.1)

    asked = [
        Request(key="never", prompt=(1, 2), max_new=NEW),
        Request(key="at once", prompt=(1, 2), max_new=NEW, deadline_s=0.0),
        Request(key="soon", prompt=(1, 2), max_new=NEW, deadline_s=1.0),
    ]
    with engine_of(model, tokenizer) as engine, hooked(model, pass_the_deadline):
        never, at_once, soon = run(engine, asked)
    assert (never.finish, len(never.ids)) == ("length", NEW)
    assert (at_once.finish, at_once.ids, at_once.usage.forwards) == ("deadline", (), 0)
    # Its fourth forward ran past the deadline.
    assert soon.finish == "deadline"
    assert len(soon.ids) <= 4
    assert soon.ids == never.ids[: len(soon.ids)]


def test_a_failing_model_fails_its_batch_and_serves_the_next(tokenizer: Any, tiny_llama: Any) -> None:
    model = tiny_llama(tokenizer)

    def fail(_size: int) -> None:
        raise ArithmeticError("no sum today")

    with engine_of(model, tokenizer) as engine:
        with hooked(model, fail):
            tickets = engine.submit(requests(3))
            for ticket in tickets:
                with pytest.raises(EngineError, match="no sum today") as caught:
                    ticket.result(30)
                assert isinstance(caught.value.__cause__, ArithmeticError)
        assert [len(one.ids) > 0 for one in run(engine, requests(3))] == [True] * 3


def test_out_of_memory_is_met_with_smaller_batches(tokenizer: Any, tiny_llama: Any) -> None:
    model = tiny_llama(tokenizer)
    asked = requests(7)
    sizes = []

    def hook(size: int) -> None:
        sizes.append(size)
        if size > 2:
            raise torch.OutOfMemoryError("too many rows")

    with engine_of(model, tokenizer) as engine:
        free = run(engine, asked)
        with hooked(model, hook):
            assert [one.ids for one in run(engine, asked)] == [one.ids for one in free]
    assert max(sizes) == 7


def test_what_cannot_be_run_fails_alone(tokenizer: Any, tiny_llama: Any) -> None:
    model = tiny_llama(tokenizer)
    with engine_of(model, tokenizer) as engine:
        good, *bad = engine.submit(
            [
                Request(key="good", prompt=(1, 2), max_new=2),
                Request(key="too long", prompt=(1,) * 250, max_new=7),
                Request(key="unknown token", prompt=(1, len(tokenizer)), max_new=2),
                Request(key="unknown draft", prompt=(1,), draft=draft_of(-1), max_new=2),
                Request(key="empty", prompt=(), max_new=2),
            ]
        )
        assert len(good.result(30).ids) == 2
        errors = [ticket.future.exception(30) for ticket in bad]
    assert [type(error) for error in errors] == [ContextOverflowError, EngineError, EngineError, EngineError]
    assert "257 tokens" in str(errors[0])
    assert "resize_token_embeddings" in str(errors[1])


def test_close_finishes_what_runs_refuses_what_comes_and_frees_the_model(tokenizer: Any, tiny_llama: Any) -> None:
    model = tiny_llama(tokenizer)
    reference = weakref.ref(model)
    engine = HuggingFaceEngine(model, tokenizer, max_batch=2)
    tickets = engine.submit(requests(6))
    engine.close()
    assert all(ticket.future.done() and ticket.future.exception() is None for ticket in tickets)
    with pytest.raises(EngineError, match="closed"):
        engine.submit(requests(1))
    engine.close()
    del model
    gc.collect()
    assert reference() is None


def test_an_engine_nobody_holds_is_freed(tokenizer: Any, tiny_llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "_IDLE_S", 0.05)
    engine = HuggingFaceEngine(tiny_llama(tokenizer), tokenizer)
    run(engine, requests(2, max_new=2))
    worker = next(thread for thread in threading.enumerate() if thread.name == "aligner-chain-engine")
    reference = weakref.ref(engine)
    worker.join(30)
    # It is there again when something comes.
    assert len(run(engine, requests(2, max_new=2))) == 2
    del engine
    for thread in threading.enumerate():
        if thread.name == "aligner-chain-engine":
            thread.join(30)
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("drafted", [True, False])
def test_a_text_ends_the_output_as_soon_as_it_stands_there(
    tokenizer: Any, tiny_llama: Any, packed: bool, drafted: bool
) -> None:
    with engine_of(tiny_llama(tokenizer), tokenizer, packed=packed) as engine:
        whole = run(engine, requests(12))
        asked, expected = [], []
        for request, free in zip(requests(12), whole, strict=True):
            text = tokenizer.decode(free.ids, skip_special_tokens=True)
            stop = text[9:12]
            # The slow obvious way: the text of ever more tokens, until the stop is in it.
            counts = (n for n in range(len(free.ids) + 1) if stop in tokenizer.decode(free.ids[:n]))
            expected.append(next(counts))
            draft = draft_of(*free.ids) if drafted else None
            asked.append(replace(request, stop=("never written", stop, ""), draft=draft))
        stopped = run(engine, asked)
    assert [len(one.ids) for one in stopped] == expected
    assert [one.ids for one in stopped] == [one.ids[:n] for one, n in zip(whole, expected, strict=True)]
    assert {one.finish for one in stopped} == {"stop"}


def test_a_stop_of_no_characters_ends_nothing(tokenizer: Any, tiny_llama: Any) -> None:
    with engine_of(tiny_llama(tokenizer), tokenizer) as engine:
        assert run(engine, requests(2, stop=("",)))[1].ids == run(engine, requests(2))[1].ids


@pytest.mark.parametrize("packed", [True, False])
def test_a_draft_that_is_likely_enough_is_the_output(tokenizer: Any, tiny_llama: Any, packed: bool) -> None:
    """None of the drafts is what the model would write; whether they stand depends on the least likely token alone.

    That nothing follows counts as one of them. It is likeliest where two tokens may say so.
    """
    drafts = [replace(draft_of(*range(number, 20 + number)), ends=(number % 2 * 7,)) for number in range(6)]
    asked = [replace(one, draft=draft) for one, draft in zip(requests(6, score_draft=True), drafts, strict=True)]
    with engine_of(tiny_llama(tokenizer), tokenizer, packed=packed) as engine:
        plain = run(engine, asked)
        least = [min(*(one.draft_logprobs or ()), one.draft_end_logprob or 0.0) for one in plain]
        above = run(engine, [replace(one, approve=score - 1e-6) for one, score in zip(asked, least, strict=True)])
        below = run(engine, [replace(one, approve=score + 1e-6) for one, score in zip(asked, least, strict=True)])
    assert [one.ids for one in above] == [draft.ids for draft in drafts]
    assert {(one.approved, one.finish, one.usage.forwards) for one in above} == {(True, "eos", 1)}
    assert [one.ids for one in below] == [one.ids for one in plain]
    assert all(not one.approved for one in below)


_LEFT = """
import sys, threading, time
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from tokenizers import Tokenizer, models
from aligner_chain.engines.base import Request
from aligner_chain.engines.huggingface import HuggingFaceEngine
from aligner_chain.session import Reading

raw = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
config = LlamaConfig(
    vocab_size=8, hidden_size=64, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
    max_position_embeddings=100_000, eos_token_id=None,
)
engine = HuggingFaceEngine(
    LlamaForCausalLM(config), PreTrainedTokenizerFast(tokenizer_object=raw), packed=sys.argv[1] == "packed"
)
if sys.argv[2] == "reading":
    left = Reading(engine, lambda answer: (1,) * 40)
    left.tell("a")
endless = engine.submit([Request(key="endless", prompt=(1, 2), max_new=50_000, stream=True)])[0]
waits = threading.Thread(target=lambda: print(endless.result().finish), daemon=True)
waits.start()
while not endless.ids:
    time.sleep(0.01)
print("end", flush=True)
"""


@pytest.mark.parametrize(("path", "also"), [("packed", ""), ("packed", "reading"), ("plain", "")])
def test_a_process_that_ends_while_it_decodes_ends_well(path: str, also: str) -> None:
    """A thread inside of a forward would abort it; a new thread at its very end would never let it go."""
    ended = subprocess.run([sys.executable, "-c", _LEFT, path, also], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout.splitlines()[0]) == (0, "end"), ended.stderr
