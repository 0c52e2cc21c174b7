"""What was promoted is served in another process, with the network cut off."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import micro

from bootstrap.registry import Registry

# Any connection or name look-up ends the process.
CHAIN = """
import json, socket
def cut(*args, **kwargs): raise SystemExit("the network was used")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = cut
from aligner_chain.langchain import AlignerCorrector, LocalChatModel
chain = LocalChatModel.served(max_new_tokens=16) | AlignerCorrector()
messages = chain.batch(["say tea sun", "say dog cat", "say sea hat"])
print(json.dumps([(m.content, m.response_metadata["aligner"]["outcome"]) for m in messages]))
"""


def test_a_separate_process_runs_the_served_pair_without_network(models: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "home")
    versions = [
        registry.add(kind, lambda folder, kind=kind: shutil.copytree(models / kind, folder, dirs_exist_ok=True), {})
        for kind in ("upstream", "aligner")
    ]
    registry.promote(*versions, figures={})
    env = {**os.environ, "ALIGNER_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    env.pop("ALIGNER_MODEL", None)
    done = subprocess.run([sys.executable, "-c", CHAIN], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    right = [
        text == micro.answer(q, "good")
        for (text, _), q in zip(answers, ("say tea sun", "say dog cat", "say sea hat"), strict=True)
    ]
    assert all(right), answers
    assert any(outcome == "corrected" for _, outcome in answers)
