"""Loading a checkpoint, and what is said about one that cannot be used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aligner_chain import Aligner, Exchange
from aligner_chain.checkpoint import AlignerMetadata, read_metadata, write_metadata
from aligner_chain.engines.base import Request
from aligner_chain.engines.huggingface import HuggingFaceEngine, shared_engine
from aligner_chain.engines.loading import pick_dtype
from aligner_chain.errors import CheckpointError, TemplateError
from aligner_chain.templates import get_template

METADATA = AlignerMetadata(
    name="desk",
    version="3",
    template="aligner-chain/1",
    template_text=get_template("aligner-chain/1").text,
    criteria=("true", "polite"),
    thresholds={"keep": 0.5},
    base_model="base",
    data_sha256="ab",
    licence="Apache-2.0",
)


@pytest.fixture
def folder(tmp_path: Path, prepared: Any, tiny_llama: Any) -> Path:
    """A complete Aligner checkpoint."""
    tiny_llama(prepared, dtype="float32").save_pretrained(tmp_path)
    prepared.save_pretrained(tmp_path)
    write_metadata(tmp_path, METADATA)
    return tmp_path


def test_metadata_is_read_back(tmp_path: Path) -> None:
    write_metadata(tmp_path, METADATA)
    assert read_metadata(tmp_path) == METADATA
    assert METADATA.identity == "desk@3"
    assert json.loads((tmp_path / "aligner.json").read_text())["schema"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["aligner.json"]


@pytest.mark.parametrize(
    "broken",
    [
        "{",
        "[]",
        '{"name": "x", "version": "1", "template": "aligner-chain/1"}',
        '{"schema": 2, "name": "x", "version": "1", "template": "aligner-chain/1"}',
        '{"schema": 1, "name": "x", "version": "1"}',
        '{"schema": 1, "name": "x", "version": 1, "template": "aligner-chain/1"}',
        '{"schema": 1, "name": "x", "version": "1", "template": "aligner-chain/1", "license": "MIT"}',
        '{"schema": 1, "name": "x", "version": "1", "template": "aligner-chain/1", "criteria": "true"}',
        '{"schema": 1, "name": "x", "version": "1", "template": "aligner-chain/1", "thresholds": {"keep": "0"}}',
        '{"schema": 1, "name": "x", "version": "1", "template": "aligner-chain/1", "longest_output": -1}',
        '{"schema": 1, "name": "x", "version": "1", "template": "aligner-chain/1", "longest_output": true}',
    ],
)
def test_broken_metadata_says_the_way_out(tmp_path: Path, broken: str) -> None:
    (tmp_path / "aligner.json").write_text(broken)
    with pytest.raises(CheckpointError, match="template="):
        read_metadata(tmp_path)


def test_an_aligner_from_its_folder(folder: Path) -> None:
    aligner = Aligner.from_pretrained(folder)
    assert (aligner.identity, aligner.metadata) == ("desk@3", METADATA)
    assert next(aligner.engine.model.parameters()).dtype == torch.float32
    assert aligner.correct([Exchange.of("q", "a")])[0].outcome == "failed"
    aligner.close()


def test_a_folder_without_metadata_needs_the_template(folder: Path) -> None:
    (folder / "aligner.json").unlink()
    with pytest.raises(CheckpointError, match=r"template=.*aligner-chain/1, pku-aligner/1"):
        Aligner.from_pretrained(folder)
    aligner = Aligner.from_pretrained(folder, template="pku-aligner/2", revision="v1")
    assert (aligner.identity, aligner.metadata.template) == (f"{folder.name}@v1", "pku-aligner/2")
    aligner.close()


def test_a_template_that_is_named_overrides(folder: Path) -> None:
    chosen = get_template("pku-aligner/1", "refuse")
    aligner = Aligner.from_pretrained(str(folder), template=chosen)
    assert (aligner.identity, aligner.metadata.template) == ("desk@3", "pku-aligner/1")
    assert aligner.template is chosen
    aligner.close()
    with pytest.raises(TemplateError, match="Known are aligner-chain/1"):
        Aligner.from_pretrained(folder, template="nonsense")


def test_a_template_with_another_text_is_refused(folder: Path) -> None:
    write_metadata(folder, replace(METADATA, template_text="something older", package_version="0.0.1"))
    with pytest.raises(TemplateError, match=r"something older[\s\S]*0\.0\.1"):
        Aligner.from_pretrained(folder)


def test_a_tokenizer_without_the_special_tokens_does_not_fit(folder: Path, make_tokenizer: Any) -> None:
    make_tokenizer().save_pretrained(folder)
    with pytest.raises(TemplateError, match="train-aligner"):
        Aligner.from_pretrained(folder)


@pytest.mark.parametrize("path", ["/no/such/folder", "./nothing", "a/b/c", Path("nothing"), "~/no such folder"])
def test_a_folder_that_is_not_there(path: Any) -> None:
    with pytest.raises(CheckpointError, match=r"no model folder.*aligner-bootstrap demo"):
        Aligner.from_pretrained(path)


def test_a_hub_id_without_network_or_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="needs the network once"):
        HuggingFaceEngine.from_pretrained("organisation/nothing-by-this-name")


def test_a_folder_without_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer.*HuggingFaceEngine\(model, tokenizer\)"):
        HuggingFaceEngine.from_pretrained(folder)


def test_pickled_weights_are_not_loaded(folder: Path, prepared: Any, tiny_llama: Any) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(tiny_llama(prepared).state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="safetensors"):
        HuggingFaceEngine.from_pretrained(folder)


def test_broken_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="could not be loaded"):
        HuggingFaceEngine.from_pretrained(folder)


def test_remote_code_is_not_run(folder: Path) -> None:
    (folder / "evil.py").write_text("import pathlib; pathlib.Path(__file__).with_name('ran').touch()\nEvil = None\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}, "model_type": "evil"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError):
        HuggingFaceEngine.from_pretrained(folder)
    assert not (folder / "ran").exists()


def test_an_adapter_folder_is_base_and_adapter_merged(folder: Path, tmp_path_factory: Any, prepared: Any) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    base = LlamaForCausalLM.from_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapted = get_peft_model(base, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    adapter = tmp_path_factory.mktemp("adapter")
    adapted.save_pretrained(adapter)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        expected = adapted.eval()(ids).logits[0, -1]
    engine = HuggingFaceEngine.from_pretrained(adapter)
    choices = tuple(range(len(prepared)))
    [ticket] = engine.submit([Request(key="", prompt=(1, 2, 3), choices=choices)])
    assert list(ticket.result(30).choice_logprobs.values()) == pytest.approx(
        expected.log_softmax(-1).tolist(), abs=1e-4
    )
    engine.close()

    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="can run code"):
        HuggingFaceEngine.from_pretrained(adapter)


def test_objects_rebuilt_share_one_engine(folder: Path) -> None:
    engine = shared_engine(folder)
    assert shared_engine(str(folder)) is engine
    assert shared_engine(folder / ".." / folder.name) is engine
    other = shared_engine(folder, dtype="float64")
    assert other is not engine
    engine.close()
    again = shared_engine(folder)
    assert again is not engine
    for one in (other, again):
        one.close()


def test_dtypes() -> None:
    assert pick_dtype("auto", "cpu") == torch.float32
    assert pick_dtype("bfloat16", "cpu") == torch.bfloat16
    with pytest.raises(CheckpointError, match="float16"):
        pick_dtype("nn", "cpu")
