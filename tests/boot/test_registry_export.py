"""Models that leave the registry: folders that stand by themselves, and the Hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import micro
import pytest
from hub_server import HubServer

from aligner_chain.aligner import Aligner
from aligner_chain.checkpoint import AlignerMetadata, write_metadata
from aligner_chain.exchange import Exchange
from bootstrap.cli import main
from bootstrap.demo.models import new_model
from bootstrap.errors import RegistryError
from bootstrap.registry import Registry, export
from bootstrap.upstream import save_model


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter for it that does something, and an Aligner; none of them knows anything."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder, tokenizer = tmp_path_factory.mktemp("parts"), micro.tokenizer()
    for name in ("base", "aligner"):
        new_model(tokenizer, seed=0, hidden=32, layers=2).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    metadata = AlignerMetadata(name="micro", version="1", template="aligner-chain/1", licence="Apache-2.0")
    write_metadata(folder / "aligner", metadata)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    settings = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    (folder / "adapter").mkdir()
    save_model(get_peft_model(base, settings), folder / "base", folder / "adapter")
    return folder


@pytest.fixture
def registry(parts: Path, tmp_path: Path) -> Registry:
    """Serves the adapter with the Aligner."""
    made = Registry(tmp_path / "home")
    manifest = {"base": str(parts / "base"), "data": {"sha256": "d1ce"}, "licence": "MIT"}
    upstream = made.add("upstream", lambda to: shutil.copytree(parts / "adapter", to, dirs_exist_ok=True), manifest)
    aligner = made.add("aligner", lambda to: shutil.copytree(parts / "aligner", to, dirs_exist_ok=True), {})
    made.promote(upstream, aligner, figures={"right | wrong\n# no": 0.91, "by": {"kind": 1}})
    return made


def logits(model: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(torch.arange(12)[None]).logits


def run(registry: Registry, *arguments: str, code: int = 0) -> None:
    assert main(["registry", *arguments, "--home", str(registry.home)]) == code


def test_an_adapter_is_exported_merged_and_as_it_is(registry, parts, tmp_path):
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run(registry, "export", "--upstream", "champion", "--merge", "--out", str(tmp_path / "whole"))
    run(registry, "export", "--upstream", "1", "--out", str(tmp_path / "adapter"))
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    adapted = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.allclose(logits(whole), logits(adapted), atol=1e-5)
    assert not torch.allclose(logits(whole), logits(AutoModelForCausalLM.from_pretrained(parts / "base")), atol=1e-2)
    assert AutoTokenizer.from_pretrained(tmp_path / "whole").get_vocab() == micro.tokenizer().get_vocab()
    assert not list((tmp_path / "whole").glob("adapter*"))
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        parts / "base"
    )


def test_an_exported_aligner_corrects(registry, tmp_path):
    run(registry, "export", "--aligner", "champion", "--merge", "--out", str(tmp_path / "out"))
    aligner = Aligner.from_pretrained(str(tmp_path / "out"))
    [correction] = aligner.correct([Exchange.of("say tea sun", "tea sun is bad")])
    assert correction.aligner == "micro@1"
    aligner.close()
    assert 'license: "apache-2.0"' in (tmp_path / "out" / "README.md").read_text()


def test_a_merged_aligner_still_says_what_it_is(registry, parts, tmp_path):
    def write(folder: Path) -> None:
        shutil.copytree(parts / "adapter", folder, dirs_exist_ok=True)
        shutil.copy2(parts / "aligner" / "aligner.json", folder)

    registry.add("aligner", write, {})
    run(registry, "export", "--aligner", "2", "--merge", "--out", str(tmp_path / "out"))
    Aligner.from_pretrained(str(tmp_path / "out")).close()


def test_the_card_tells_what_it_was_made_of_and_no_paths(registry, tmp_path):
    export(registry.version("upstream", 1), tmp_path / "out", pair=registry.served())
    card = (tmp_path / "out" / "README.md").read_text()
    for part in ('library_name: "peft"', 'license: "mit"', "| base | base |", "| d1ce |", "| by / kind | 1 |"):
        assert part in card
    assert "| right \\| wrong # no | 0.91 |" in card
    assert str(tmp_path) not in card
    assert "base_model" not in card  # a folder of this machine is no model of the Hub


def test_what_cannot_be_exported_leaves_nothing(registry, tmp_path, capsys):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "precious").touch()
    run(registry, "export", "--aligner", "1", "--out", str(mine), code=1)
    assert "not an empty folder" in capsys.readouterr().err
    away = ("--upstream", "1", "--merge", "--base", str(tmp_path / "away"), "--out", str(tmp_path / "out"))
    run(registry, "export", *away, code=1)
    assert "Or name its folder:  --base PATH" in capsys.readouterr().err
    pickled = registry.add("aligner", lambda folder: (folder / "pytorch_model.bin").touch(), {})
    with pytest.raises(RegistryError, match="may run code"):
        export(pickled, tmp_path / "out")
    run(registry, "export", "--upstream", "previous", "--out", str(tmp_path / "out"), code=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "mine"]


@pytest.fixture
def hub() -> Iterator[HubServer]:
    server = HubServer()
    yield server
    server.close()


CALLS = """
import json, sys
from bootstrap.cli import main
print([main([*call, "--json"]) for call in json.loads(sys.argv[1])])
"""


def test_the_hub_takes_and_gives_models(registry, hub, tmp_path):
    there, pickle = ["--repo", "ann/micro"], b"not to be loaded"
    hub.files["ann/evil"], hub.private["ann/evil"] = {"pytorch_model.bin": pickle, "config.json": b"{}"}, False
    code = dict.fromkeys(("pytorch_model.bin", "modeling.py", "deeper/optimizer.pt"), pickle)
    hub.files["ann/mixed"] = {"model.safetensors": b"weights", "config.json": b"{}", **code}
    hub.private["ann/mixed"] = False
    calls = [
        ["registry", "push", "--aligner", "champion", *there, "--private"],
        ["registry", "pull", "--kind", "aligner", *there],
        ["registry", "pull", "--kind", "upstream", "--repo", "ann/evil"],
        ["registry", "pull", "--kind", "upstream", "--repo", "ann/mixed"],
        ["registry", "pull", "--kind", "upstream", "--repo", "ann/nothing"],
        ["registry", "push", "--aligner", "champion", "--repo", "ann/evil", "--private"],
    ]
    env = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_token",
        "HF_HOME": str(tmp_path / "cache"),
        "ALIGNER_HOME": str(registry.home),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", CALLS, json.dumps(calls)], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines()[-1:] == ["[0, 0, 1, 0, 1, 1]"], done.stderr
    assert hub.tokens == {"Bearer hf_token"}
    assert hub.private["ann/micro"]
    pulled = registry.version("aligner", 2)
    assert pulled.manifest["source"] == {"hub": "ann/micro", "revision": "c" * 40}
    assert set(pulled.files) == set(hub.files["ann/micro"]) >= {"model.safetensors", "aligner.json", "README.md"}
    assert hub.files["ann/evil"] == {"pytorch_model.bin": pickle, "config.json": b"{}"}
    for told in (
        "ann/evil is no upstream that can be served: it has no weights as safetensors",
        "ann/evil is there and public",
        "ann/nothing could not be pulled",
    ):
        assert told in done.stderr
    assert [set(version.files) for version in registry.versions("upstream")[1:]] == [
        {"model.safetensors", "config.json"}
    ]
    Aligner.from_pretrained(str(pulled.path)).close()
