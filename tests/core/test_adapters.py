"""Several adapters over one model in memory, against a model of each with its adapter merged."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exactness import VOCABULARY, Vocabulary, divergences, greedy, random_cases, random_model

from aligner_chain import Aligner, Exchange
from aligner_chain.checkpoint import AlignerMetadata, write_metadata
from aligner_chain.engines import huggingface
from aligner_chain.engines.base import Request
from aligner_chain.engines.huggingface import HuggingFaceEngine
from aligner_chain.errors import CapabilityError, CheckpointError, EngineError, TemplateError
from aligner_chain.templates import get_template

peft = pytest.importorskip("peft", reason="adapters need PEFT")
NAMES = (None, "polite@1", "polite@2")


def adapter(model: Any, folder: Path, seed: int, **settings: Any) -> Any:
    """Saves a random adapter of the model and returns a model into which it is merged."""
    config = peft.LoraConfig(r=4, lora_alpha=32, target_modules="all-linear", init_lora_weights=False, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = peft.get_peft_model(deepcopy(model), config)
    adapted.save_pretrained(folder)
    return adapted.merge_and_unload()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str | None, Path]:
    return {name: tmp_path_factory.mktemp("adapter") for name in NAMES}


@pytest.fixture(scope="module")
def merged(folders: dict[str | None, Path]) -> dict[str | None, Any]:
    """The model by itself, and with each adapter; the last one trained the embeddings as well."""
    base = random_model("Llama")
    one = adapter(base, folders[NAMES[1]], seed=1)
    other = adapter(base, folders[NAMES[2]], seed=2, modules_to_save=["embed_tokens"])
    return dict(zip(NAMES, (base, one, other), strict=True))


@pytest.fixture(params=[True, False], ids=["packed", "padded"])
def engine(
    request: pytest.FixtureRequest, folders: dict[str | None, Path], merged: dict[str | None, Any]
) -> Iterator[HuggingFaceEngine]:
    engine = HuggingFaceEngine(random_model("Llama"), Vocabulary(), max_batch=8, packed=request.param)
    for name in NAMES[1:]:
        engine.load(str(name), folders[name])
    yield engine
    engine.close()


def asked(prompt: tuple[int, ...], name: str | None, new: int = 24) -> Request:
    return Request(key="", prompt=prompt, max_new=new, adapter=name)


def test_rows_of_several_adapters_decode_side_by_side(
    merged: dict[str | None, Any], folders: dict[str | None, Path]
) -> None:
    source = random.Random(0)
    cases = [
        replace(case, request=replace(case.request, adapter=name))
        for name in NAMES
        for case in random_cases(merged[name], 12, source)
    ]
    source.shuffle(cases)
    engine = HuggingFaceEngine(random_model("Llama"), Vocabulary(), max_batch=8)
    for name in NAMES[1:]:
        engine.load(str(name), folders[name])
    done, wrong = divergences(engine, cases, source)
    engine.close()
    assert done > 24
    assert wrong == []


def test_what_one_adapter_read_is_not_taken_for_another(
    engine: HuggingFaceEngine, merged: dict[str | None, Any]
) -> None:
    prompt = tuple(random.Random(1).randrange(2, VOCABULARY) for _ in range(40))
    texts = [greedy(merged[name], prompt, 24) for name in NAMES]
    assert len(set(texts)) == len(NAMES)
    for _ in range(2):  # the second time from what was kept of the first
        assert [engine.submit([asked(prompt, name)])[0].result(60).ids for name in NAMES] == texts


def test_a_prompt_that_was_read_ahead_is_read_again_for_another_adapter(
    merged: dict[str | None, Any], folders: dict[str | None, Path]
) -> None:
    engine = HuggingFaceEngine(random_model("Llama"), Vocabulary())
    engine.load("polite@1", folders["polite@1"])
    prompt = tuple(random.Random(1).randrange(2, VOCABULARY) for _ in range(40))
    ticket = engine.open(Request(key="", prompt=prompt[:30]))
    while engine.busy:
        pass
    ticket.seal(asked(prompt, "polite@1"))
    assert ticket.result(60).ids == greedy(merged["polite@1"], prompt, 24)
    engine.close()


def test_an_unknown_adapter_is_refused_before_anything_waits(engine: HuggingFaceEngine) -> None:
    with pytest.raises(CapabilityError, match=r'no adapter "polite@3" \(there: polite@1, polite@2\).*engine\.load'):
        engine.submit([asked((2, 3), None), asked((2, 3), "polite@3")])
    assert not engine.busy


def test_a_name_keeps_its_meaning(engine: HuggingFaceEngine, folders: dict[str | None, Path]) -> None:
    with pytest.raises(CapabilityError, match=r'has an adapter "polite@1" already'):
        engine.load("polite@1", folders["polite@2"])


def test_what_does_not_fit_leaves_nothing_behind(
    engine: HuggingFaceEngine, merged: dict[str | None, Any], tmp_path: Path
) -> None:
    deeper, wider = deepcopy(merged[None].config), deepcopy(merged[None].config)
    deeper.num_hidden_layers, wider.hidden_size = 3, 64
    for config, message in ((deeper, "another base model"), (wider, "could not be loaded")):
        folder = tmp_path / message.split()[0]
        adapter(type(merged[None])(config).double(), folder, seed=0)
        with pytest.raises(CheckpointError, match=message):
            engine.load("wrong@1", folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="is no adapter"):
        engine.load("wrong@1", tmp_path / "empty")
    for name in NAMES:
        assert engine.submit([asked((5, 6, 7), name)])[0].result(60).ids == greedy(merged[name], (5, 6, 7), 24)
    with pytest.raises(CapabilityError, match="there: polite@1, polite@2"):
        engine.submit([asked((2, 3), "wrong@1")])


def test_a_tokenizer_with_more_tokens_is_told_of(
    engine: HuggingFaceEngine, tokenizer: Any, folders: Any, tmp_path: Path
) -> None:
    for file in folders["polite@1"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=rf"has {len(tokenizer)} tokens, the model {VOCABULARY}"):
        engine.load("polite@3", tmp_path)


def test_unloading_waits_for_what_runs_and_refuses_what_comes(
    engine: HuggingFaceEngine, merged: dict[str | None, Any], folders: dict[str | None, Path]
) -> None:
    expected = greedy(merged["polite@1"], (2, 3, 4), 150)
    running = engine.submit([asked((2, 3, 4), "polite@1", new=150)] * 20)
    with ThreadPoolExecutor(1) as pool:
        unloading = pool.submit(engine.unload, "polite@1")
        while not unloading.done():
            try:
                engine.submit([asked((2, 3), "polite@1", new=1)])
            except CapabilityError:
                break
        unloading.result(60)
    assert all(ticket.future.done() for ticket in running)
    assert [ticket.result(0).ids for ticket in running] == [expected] * 20
    for name in (None, "polite@2"):
        assert engine.submit([asked((5, 6, 7), name)])[0].result(60).ids == greedy(merged[name], (5, 6, 7), 24)
    with pytest.raises(CapabilityError, match="there: polite@2"):
        engine.unload("polite@1")
    engine.load("polite@1", folders["polite@1"])
    assert engine.submit([asked((2, 3, 4), "polite@1", new=150)])[0].result(60).ids == expected


def test_the_last_adapter_leaves_the_model_as_it_was(engine: HuggingFaceEngine, merged: dict[str | None, Any]) -> None:
    for name in NAMES[1:]:
        engine.unload(str(name))
    assert engine.submit([asked((5, 6, 7), None)])[0].result(60).ids == greedy(merged[None], (5, 6, 7), 24)


def test_adapters_come_and_go_while_the_worker_rests(
    monkeypatch: pytest.MonkeyPatch, merged: dict[str | None, Any], folders: dict[str | None, Path]
) -> None:
    monkeypatch.setattr(huggingface, "_IDLE_S", 0.0)
    engine = HuggingFaceEngine(random_model("Llama"), Vocabulary())
    for _ in range(3):
        engine.load("polite@1", folders["polite@1"])
        assert engine.submit([asked((2, 3), "polite@1")])[0].result(60).ids == greedy(merged["polite@1"], (2, 3), 24)
        engine.unload("polite@1")
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.load("polite@1", folders["polite@1"])


def test_an_aligner_with_an_adapter_shares_the_model(tiny_llama: Any, prepared: Any, tmp_path: Path) -> None:
    def aligner(model: Any) -> Aligner:
        engine = HuggingFaceEngine(model, prepared)
        template = get_template("aligner-chain/1")
        return Aligner(engine, metadata=named("base", "1"), template=template, tokenizer=prepared)

    model = tiny_llama(prepared, max_position_embeddings=512)
    alone = aligner(adapter(model, tmp_path, seed=1))
    write_metadata(tmp_path, named("polite", "7"))
    base = aligner(model)
    adapted = base.with_adapter(tmp_path)
    assert (adapted.identity, adapted.engine) == ("polite@7", base.engine)
    exchange = Exchange.of("May I return it?", "You may not, and never could.")
    [expected], [got], [plain] = alone.correct([exchange]), adapted.correct([exchange]), base.correct([exchange])
    with adapted.begin(exchange.turns) as session:
        session.feed(exchange.answer)
        fed = session.finish()
    assert expected.scores != pytest.approx(plain.scores)
    for one in (got, fed):
        assert one.scores == pytest.approx(expected.scores)
        assert (one.text, one.outcome) == (expected.text, expected.outcome)
    with pytest.raises(CapabilityError, match="already"):
        base.with_adapter(tmp_path)
    adapted.close()
    assert base.correct([exchange])[0].scores == pytest.approx(plain.scores)
    base.with_adapter(tmp_path).close()
    base.close()
    alone.close()


def test_an_adapter_for_another_template_is_refused(tiny_llama: Any, prepared: Any, tmp_path: Path) -> None:
    model = tiny_llama(prepared)
    adapter(model, tmp_path, seed=1)
    write_metadata(tmp_path, named("polite", "7", template="pku-aligner/2"))
    engine = HuggingFaceEngine(model, prepared)
    aligner = Aligner(engine, metadata=named("base", "1"), template=get_template("aligner-chain/1"), tokenizer=prepared)
    with pytest.raises(TemplateError, match=r"pku-aligner/2.*from_pretrained"):
        aligner.with_adapter(tmp_path)
    aligner.close()


def named(name: str, version: str, template: str = "aligner-chain/1") -> AlignerMetadata:
    return AlignerMetadata(name=name, version=version, template=template)
