"""Models that leave the registry: folders that stand by themselves, and the Hub."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import micro
import pytest
from hub_server import HubServer

from aligner_chain.aligner import Aligner
from aligner_chain.calibration import Calibration
from aligner_chain.checkpoint import AlignerMetadata, read_metadata, write_metadata
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
    base = "| base | base, a folder that is not on the Hub |"
    for part in ('library_name: "peft"', 'license: "mit"', base, "| d1ce |", "| by / kind | 1 |"):
        assert part in card
    assert "| right \\| wrong # no | 0.91 |" in card
    assert str(tmp_path) not in card
    assert "base_model" not in card  # a folder of this machine is no model of the Hub


def calibrated(criterion: str, aligner: str) -> Calibration:
    return Calibration(
        criterion=criterion,
        threshold=0.8,
        alpha=0.05,
        delta=0.05,
        n_bad=90,
        n_good=90,
        kept=0.5,
        date="2026-01-01T00:00:00+00:00",
        aligner=aligner,
        upstream="upstream@1",
        package_version="0.1.0",
    )


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


def asked(hub: HubServer, registry: Registry, cache: Path, calls: list[list[str]]) -> tuple[list[int], str, str]:
    """Runs commands in a process that takes `hub` for the Hub: their exit codes, and what they printed."""
    env = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_token",
        "HF_HOME": str(cache),
        "ALIGNER_HOME": str(registry.home),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", CALLS, json.dumps(calls)], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stdout, done.stderr


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
    codes, _, told = asked(hub, registry, tmp_path / "cache", calls)
    assert codes == [0, 0, 1, 0, 1, 1], told
    assert hub.tokens == {"Bearer hf_token"}
    assert hub.private["ann/micro"]
    pulled = registry.version("aligner", 2)
    assert pulled.manifest["source"] == {"hub": "ann/micro", "revision": "c" * 40}
    assert set(pulled.files) == set(hub.files["ann/micro"]) - {".gitattributes"}
    assert set(pulled.files) >= {"model.safetensors", "aligner.json", "README.md"}
    pushed = registry.version("aligner", 1).files["model.safetensors"].sha256
    assert pulled.files["model.safetensors"].sha256 == pushed
    assert pushed in hub.large, "weights go by LFS"
    assert hub.files["ann/evil"] == {"pytorch_model.bin": pickle, "config.json": b"{}"}
    for part in (
        "ann/evil is no upstream that can be served: it has no weights as safetensors",
        "ann/evil is there and public",
        "ann/nothing could not be pulled",
    ):
        assert part in told
    assert [set(version.files) for version in registry.versions("upstream")[1:]] == [
        {"model.safetensors", "config.json"}
    ]
    Aligner.from_pretrained(str(pulled.path)).close()


def aligner_json(parts: Path, **changed: object) -> bytes:
    return json.dumps({**json.loads((parts / "aligner" / "aligner.json").read_text()), **changed}).encode()


def test_what_is_pulled_is_looked_at(registry, hub, parts, tmp_path):
    good = {path.name: path.read_bytes() for path in (parts / "aligner").iterdir()}
    config = json.loads(good["config.json"])
    code = {"AutoModelForCausalLM": "ann/other--modeling.Model"}
    bad = {
        "up": ("leads out of any folder", {"../up.json": b"{}"}),
        "root": ("leads out of any folder", {str(tmp_path / "root.json"): b"{}"}),
        "drive": ("leads out of any folder", {"C:\\drive.json": b"{}"}),
        "deep": ("leads out of any folder", {"a/..\\..\\deep.json": b"{}"}),
        "code": ("names code that is to be run", {"config.json": json.dumps({**config, "auto_map": code}).encode()}),
        "words": ("names code that is to be run", {"tokenizer_config.json": json.dumps({"auto_map": code}).encode()}),
        "bare": ("config.json of ann/bare holds no JSON object", {"config.json": b"[]"}),
        "broken": ("config.json of ann/broken cannot be read", {"config.json": b"{"}),
        "nested": ("config.json of ann/nested cannot be read", {"config.json": b"[" * 200_000}),
        "knotted": ("is no aligner that can be served", {"aligner.json": b"[" * 200_000}),
        "list": ("does not hold a JSON object", {"aligner.json": b"[]"}),
        "key": ("unknown keys", {"aligner.json": aligner_json(parts, run="sh")}),
        "nan": (
            "is not an object of numbers",
            {"aligner.json": aligner_json(parts, thresholds={"keep": float("nan")})},
        ),
        "template": ("is no aligner that can be served", {"aligner.json": aligner_json(parts, template="mine/1")}),
        "text": ("another text of the template", {"aligner.json": aligner_json(parts, template_text="{answer}")}),
        "escape": ("cannot be printed", {"aligner.json": aligner_json(parts, name="a\x1b[2Jb")}),
    }
    for name, (_, changed) in bad.items():
        hub.files[f"ann/{name}"], hub.private[f"ann/{name}"] = {**good, **changed}, False
    extra = dict.fromkeys(("model.PKL", "modeling.py", "run.sh", "rows.jsonl", "deeper/model.safetensors"), b"no")
    hub.files["ann/good"], hub.private["ann/good"] = {**good, **extra}, False
    names = [*bad, "good"]
    calls = [["registry", "pull", "--kind", "aligner", "--repo", f"ann/{name}"] for name in names]
    calls.append([*calls[-1], "--revision", "v9"])
    codes, _, told = asked(hub, registry, tmp_path / "cache", calls)
    assert codes == [1] * len(bad) + [0, 1], told
    for name, (said, _) in bad.items():
        assert any(f"ann/{name}" in line and said in line for line in told.splitlines()), name
    _, pulled = registry.versions("aligner")
    assert set(pulled.files) == set(good)
    assert not [path for path in tmp_path.rglob("*.json") if path.name in ("up.json", "deep.json")]
    assert not (tmp_path / "root.json").exists()


def test_nothing_but_the_model_leaves_and_no_path_of_this_machine(registry, hub, parts, tmp_path):
    def write(folder: Path) -> None:
        shutil.copytree(parts / "aligner", folder, dirs_exist_ok=True)
        (folder / "work").mkdir()
        for name in ("rows.jsonl", "trainer_state.json", "work/steps.jsonl", "README.md"):
            (folder / name).write_text("My card is 4711.")
        (folder / "LICENSE").write_text("Apache")

    texts = {"example": "My card is 4711.", "score": 0.5}
    aligner = registry.add("aligner", write, {"base": "org/base-1b", "examples": texts, "data": {"dropped": texts}})
    registry.register_pair(registry.version("upstream", 1), aligner, figures=texts)
    here = ["registry", "push", "--upstream", "1", "--repo", "ann/adapter"]
    noted = [
        "--data-licence",
        "CC-BY-4.0",
        "--base-licence",
        "Gemma",
        "--limit",
        "Only English.",
        "--limit",
        "Only chat.",
    ]
    calls = [
        ["registry", "push", "--aligner", "2", "--repo", "ann/clean", *noted, "--licence", "MIT"],
        here,
        [*here, "--base", "org/base-1b"],
    ]
    codes, said, told = asked(hub, registry, tmp_path / "cache", calls)
    assert codes == [0, 1, 0], told
    assert "needs the base base, a folder of this machine" in told
    assert all(name in said for name in ("rows.jsonl", "trainer_state.json", "work"))
    card = hub.files["ann/clean"]["README.md"].decode()
    for line in (
        "| licence of the data | CC-BY-4.0 |",
        "| licence of the base | Gemma |",
        "- Only English.",
        "- Only chat.",
    ):
        assert line in card
    assert 'license: "mit"' in card
    assert 'Aligner.from_pretrained("ann/clean")' in card
    assert {"LICENSE", "README.md", "aligner.json"} < set(hub.files["ann/clean"])
    assert not {"rows.jsonl", "trainer_state.json", "work/steps.jsonl"} & set(hub.files["ann/clean"])
    assert json.loads(hub.files["ann/adapter"]["adapter_config.json"])["base_model_name_or_path"] == "org/base-1b"
    for repo in ("ann/clean", "ann/adapter"):
        for name, content in hub.files[repo].items():
            assert str(tmp_path).encode() not in content, name
            assert str(parts).encode() not in content, name
            assert b"My card is" not in content, name


def test_the_card_is_one_that_the_hub_reads_and_its_lines_run(registry, parts, tmp_path, monkeypatch):
    from huggingface_hub import ModelCard

    manifest = {
        "base": "org/base-1b",
        "base_licence": "Gemma",
        "licence": "My own",
        "data": {"sha256": "d1ce", "rows": 7, "sources": {"gold": 4, "verified": 3}, "licence": "CC-BY-4.0"},
        "limits": ["English | only.\n# no"],
    }
    calibration = calibrated("true", "micro@1")

    def write(folder: Path) -> None:
        shutil.copytree(parts / "aligner", folder, dirs_exist_ok=True)
        known = read_metadata(folder)
        write_metadata(folder, replace(known, criteria=("true", "kind"), calibrations={"true": calibration}))

    aligner = registry.add("aligner", write, manifest)
    aligned = {"fully_right": 0.9, "interval": [0.83451, 0.9], "kept": 0.7, "criteria": {"true": 0.95}}
    figures = {"n": 120, "with_aligner": aligned}
    pair = registry.register_pair(registry.version("upstream", 1), aligner, figures=figures)
    export(aligner, tmp_path / "out", pair=pair)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "other",
        "license_name": "My own",
        "base_model": "org/base-1b",
        "base_model_relation": "finetune",
        "tags": ["aligner-chain", "aligner"],
    }
    for line in (
        "# micro@1",
        "| licence of the base | Gemma |",
        "| training data, SHA-256 | d1ce |",
        "| of these, by source | gold 4, verified 3 |",
        "| licence of the data | CC-BY-4.0 |",
        "It was trained to name what it corrects: true, kind.",
        "| true | 0.8 | at most 0.05 with 0.95 confidence, from 90 of upstream@1 |",
        "| with_aligner / fully_right | 0.9 | 0.8345 to 0.9 | 120 |",
        "| with_aligner / kept | 0.7 |  | 120 |",
        "| with_aligner / criteria / true | 0.95 |  | 120 |",
        "- English \\| only. # no",
    ):
        assert line in card.text.splitlines(), line
    assert "No threshold is calibrated" not in card.text
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", card.text, re.S)
    exec(code, {})  # what a visitor of the Hub would run
