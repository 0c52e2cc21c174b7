"""The proxy on a machine without torch: upstream and Aligner both run on servers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import by_heart
import httpx
import pytest
from completions_server import CompletionsServer
from openai_server import OpenAIServer

from aligner_chain.cli import main
from aligner_chain.engines.huggingface import HuggingFaceEngine

pytest.importorskip("prometheus_client", reason="the extra proxy is not installed")

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
from aligner_chain.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_an_aligner_on_a_server_corrects_without_torch_here(tmp_path: Path, make_tokenizer: Any) -> None:
    pytest.importorskip("torch")  # for the server
    folder = by_heart.always(tmp_path / "nay", make_tokenizer())
    engine = HuggingFaceEngine.from_pretrained(folder)
    with CompletionsServer(engine) as there, OpenAIServer() as model:
        named = ["--aligner", there.url, "--aligner-model", "aligner", "--checkpoint", str(folder)]
        command = [sys.executable, "-c", WITHOUT_TORCH, "serve", "--upstream", model.url, "--port", "0", *named]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as proxy:
            assert proxy.stderr is not None
            url = json.loads(proxy.stderr.readline())["base_url"]
            body = {"model": "m", "messages": [{"role": "user", "content": "Free?"}]}
            [choice] = httpx.post(f"{url}/chat/completions", json=body, timeout=30).json()["choices"]
            proxy.send_signal(signal.SIGTERM)
            assert proxy.wait(30) == 0
    engine.close()
    assert choice["message"]["content"] == "No."
    assert choice["aligner"]["aligner"] == "nay@7"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--aligner", "http://127.0.0.1:1/v1"], "--aligner-model"),
        (["--aligner", "one", "two"], "are for servers"),
        (["--checkpoint", "folder"], "are for servers"),
    ],
)
def test_what_belongs_together_is_said(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--upstream", "http://127.0.0.1:1/v1", *options]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--max-body", "1e6", "'1e6' is no whole number"),
        ("--max-requests", "0", "'0' is no whole number"),
        ("--grace", "5m", "'5m' is no number of seconds"),
        ("--timeout", "nan", "'nan' is no number of seconds"),
    ],
)
def test_a_number_that_is_none_is_said(option: str, value: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--upstream", "http://127.0.0.1:1/v1", option, value])
    assert told in capsys.readouterr().err
