"""Linear layers with their weights in oneDNN's order: the same numbers as torch's own, and never those of other weights."""

from __future__ import annotations

import io
import pickle
import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from exactness import FAMILIES, Vocabulary, divergences, greedy, random_cases, random_model

from aligner_chain.engines import onednn
from aligner_chain.engines.base import Request
from aligner_chain.engines.huggingface import HuggingFaceEngine
from aligner_chain.engines.onednn import PackedLinear, pack, rounded
from aligner_chain.engines.packed import Memory, Segment, forward, prepare

pytestmark = pytest.mark.skipif(
    not onednn.multiplies(torch.zeros(1, 1)), reason="torch has no oneDNN products for this processor"
)


@pytest.fixture(autouse=True)
def _small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The models here are so small that torch's own products would be faster."""
    monkeypatch.setattr(onednn, "LEAST", 0)


IDS = torch.tensor([[5, 7, 3, 9, 11, 2, 30]])


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits.float()


def packed(family: str = "Llama", dtype: torch.dtype = torch.float32) -> Any:
    model = random_model(family, dtype=dtype)
    assert pack(model) > 0
    return model


def sorted_layers(model: Any) -> int:
    return sum(getattr(layer, "_sorted", None) is not None for layer in model.modules())


def lost(model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model where a product with sorted weights would be an error."""
    monkeypatch.setattr(onednn, "_product", None)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_model_says_the_same_with_its_weights_in_another_order(family: str, dtype: torch.dtype) -> None:
    if not onednn.multiplies(torch.zeros(1, 1, dtype=dtype)):
        pytest.skip(f"this processor does not multiply {dtype}")
    model = random_model(family, dtype=dtype)
    before = logits(model)
    pack(model)
    assert sorted_layers(model) == sum(isinstance(layer, torch.nn.Linear) for layer in model.modules())
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    assert (logits(model) - before).abs().max() <= tolerance * before.abs().max()


@pytest.mark.parametrize("rows", ["packed", "padded"])
def test_an_engine_multiplies_with_them(rows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    products: list[tuple[int, ...]] = []
    product = onednn._product
    monkeypatch.setattr(onednn, "_product", lambda rows, *rest: products.append(rows.shape) or product(rows, *rest))
    texts = []
    for most in (None, 0):
        model = random_model("Llama", dtype=torch.float32)
        engine = HuggingFaceEngine(model, Vocabulary(), sorted_bytes=most, packed=rows == "packed")
        products.clear()
        texts.append(engine.submit([Request(key="", prompt=(5, 7, 3), max_new=20)])[0].result(60).ids)
        engine.close()
        assert bool(products) == (most is None and rows == "packed")
    assert texts[0] == texts[1]


def test_any_draft_gives_the_greedy_text_in_float32() -> None:
    source = random.Random(7)
    cases = random_cases(random_model("Qwen3", dtype=torch.float32), 30, source)
    engine = HuggingFaceEngine(random_model("Qwen3", dtype=torch.float32), Vocabulary())
    _, wrong = divergences(engine, cases, source)
    engine.close()
    assert wrong == []


def test_new_weights_at_the_address_of_the_old_are_new() -> None:
    """As where a model goes to another type and back: the memory that was given back is the first to be taken."""
    for size in (32, 128, 256):
        for _ in range(20):
            model: Any = torch.nn.Sequential(torch.nn.Linear(size, size))
            rows = torch.randn(3, size)
            assert pack(model) > 0
            model.half().float()
            with torch.inference_mode():
                assert torch.equal(model(rows), torch.nn.functional.linear(rows, model[0].weight, model[0].bias))


@pytest.mark.parametrize("number", ["in place", "another tensor", "another type"])
def test_weights_that_change_are_followed(number: str) -> None:
    model, other = packed(), random_model("Llama", dtype=torch.float32, seed=1)
    if number == "in place":
        model.load_state_dict(other.state_dict())
    elif number == "another tensor":
        model.load_state_dict(other.state_dict(), assign=True)
    else:
        model, other = model.double(), random_model("Llama", seed=0).float().double()
    assert torch.equal(logits(model), logits(other))
    sorted_again = pack(model.float())
    assert sorted_again > 0
    assert torch.allclose(logits(model), logits(other.float()), atol=1e-5)


def test_copies_have_numbers_of_their_own(tmp_path: Path) -> None:
    model = packed()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]
    for copy in copies:
        assert sorted_layers(copy) == 0
        with torch.no_grad():
            copy.lm_head.weight.zero_()
        assert logits(copy).abs().max() == 0
    assert logits(model).abs().max() > 0
    assert model.state_dict().keys() == random_model("Llama").state_dict().keys()


def test_training_goes_on_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = lost(packed(), monkeypatch), random_model("Llama", dtype=torch.float32)
    for one in (model, plain):
        one(IDS, labels=IDS).loss.backward()
    assert torch.equal(model.lm_head.weight.grad, plain.lm_head.weight.grad)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, plain(IDS).logits)


def test_autocast_is_left_to_torch() -> None:
    model, plain = packed(), random_model("Llama", dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert (logits(model) - logits(plain)).abs().max() <= 3e-2 * logits(plain).abs().max()


def test_adapters_go_around_them(tmp_path: Path) -> None:
    """Also one that brings a layer of its own, which PEFT makes as a copy of the packed one."""
    peft = pytest.importorskip("peft", reason="adapters need PEFT")
    config = peft.LoraConfig(
        r=4,
        lora_alpha=32,
        target_modules=["q_proj", "up_proj"],
        init_lora_weights=False,
        modules_to_save=["lm_head"],
    )
    base = random_model("Llama", dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        adapted = peft.get_peft_model(deepcopy(base), config)
        with torch.no_grad():
            adapted.base_model.model.lm_head.modules_to_save["default"].weight.normal_()
    adapted.save_pretrained(tmp_path)
    merged = adapted.merge_and_unload()
    engine = HuggingFaceEngine(random_model("Llama", dtype=torch.float32), Vocabulary())
    engine.load("one@1", tmp_path)
    for name, model in (("one@1", merged), (None, base)):
        ticket = engine.submit([Request(key="", prompt=(5, 7, 3), max_new=20, adapter=name)])[0]
        assert tuple(ticket.result(60).ids) == greedy(model, (5, 7, 3), 20)
    engine.close()


def test_the_copy_takes_no_more_than_it_may() -> None:
    model = random_model("Llama", dtype=torch.float32)
    largest = model.lm_head.weight.nbytes
    assert pack(model, 0) == 0
    assert sorted_layers(model) == 0
    assert 0 < pack(model, 2 * largest) <= 2 * largest
    some = sorted_layers(model)
    assert 0 < some < sum(isinstance(layer, torch.nn.Linear) for layer in model.modules())
    assert pack(model, 2 * largest) <= 2 * largest
    assert sorted_layers(model) == some  # what was sorted before counts


def test_small_products_stay_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    multiplied: list[int] = []
    product = onednn._product
    monkeypatch.setattr(onednn, "_product", lambda rows, *rest: multiplied.append(len(rows)) or product(rows, *rest))
    model: Any = torch.nn.Sequential(torch.nn.Linear(256, 128))
    pack(model)
    monkeypatch.setattr(onednn, "LEAST", 2**17)
    multiplied.clear()
    with torch.inference_mode():
        for rows in (1, 3, 4, 40):
            model(torch.zeros(rows, 256))
    assert multiplied == [4, 40]


def test_few_numbers_of_rows_occur_and_none_is_much_too_large() -> None:
    made = {rows: rounded(rows) for rows in range(2049)}
    assert all(rows <= size <= rows + rows // 5 for rows, size in made.items())
    assert all(rounded(size) == size for size in made.values())
    assert len(set(made.values())) < 80


def test_what_fills_a_forward_up_is_seen_by_none() -> None:
    @torch.inference_mode()
    def spoken(size: Any) -> torch.Tensor:
        memories, said = [Memory(4), Memory(4)], []
        for branches in ((), ((7, 8), (9,))):
            segments = [Segment(memory, IDS[0, at:].tolist(), branches) for at, memory in enumerate(memories)]
            said.append(forward(model, segments, size))
            for memory, segment in zip(memories, segments, strict=True):
                memory.length += len(segment.tokens)
        return torch.cat(said)

    model = packed()
    assert prepare(model) is None
    plain = spoken(int)
    assert len(plain) == 2 * 1 + 2 * 4
    assert torch.allclose(spoken(lambda rows: rows + 5), plain, atol=1e-5)


def test_an_engine_fills_its_forwards_up_where_it_pays() -> None:
    widths: list[int] = []
    for most in (None, 0):
        model = random_model("Llama", dtype=torch.float32)
        model.register_forward_pre_hook(
            lambda _, __, given: widths.append(given["input_ids"].shape[1]), with_kwargs=True
        )
        engine = HuggingFaceEngine(model, Vocabulary(), sorted_bytes=most)
        widths.clear()
        engine.submit([Request(key="", prompt=(5,) * 21, max_new=2)])[0].result(60)
        engine.close()
        assert widths == ([24, 1] if most is None else [21, 1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_other_numbers_are_left_alone(dtype: torch.dtype) -> None:
    model = random_model("Llama", dtype=dtype)
    assert pack(model) == 0
    assert not any(isinstance(layer, PackedLinear) for layer in model.modules())


@pytest.mark.parametrize("product", [lambda *_: 1 / 0, lambda rows, *_: rows.sum()], ids=["fails", "differs"])
def test_a_product_that_cannot_be_trusted_is_not_used(
    product: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = random_model("Llama", dtype=torch.float32)
    before = logits(model)
    monkeypatch.setattr(onednn, "_product", product)
    assert pack(model) == 0
    assert torch.equal(logits(model), before)
    assert "is left to torch" in caplog.text
