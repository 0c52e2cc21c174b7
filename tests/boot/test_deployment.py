"""The files of docs/deployment: what they name exists, and every command is one of ours that parses."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import aligner_chain.cli
import bootstrap.cli
from bootstrap.config import read_config

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "deployment"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
PARSERS = {"aligner-chain": aligner_chain.cli._parser, "aligner-bootstrap": bootstrap.cli._parser}


def commands() -> list[list[str]]:
    """Of the services, and those that the page has people type."""
    typed = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^\$ .*?((?:aligner-chain|aligner-bootstrap) [^#\n]*)", typed, re.M)
    ours = [one["command"] for one in SERVICES.values() if "command" in one]
    return [[*map(str, one)] for one in ours] + [line.replace('"', "").split() for line in lines]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_parses(command: list[str]) -> None:
    program, *arguments = (re.sub(r"\$\{(\w+).*?\}|\$\w+", "http://127.0.0.1/v1", word) for word in command)
    assert PARSERS[program]().parse_args(arguments)


def test_there_are_commands() -> None:
    assert len(commands()) == 4


def test_what_services_name_is_declared() -> None:
    for service in SERVICES.values():
        assert "image" in service or (ROOT / service["build"]["dockerfile"]).is_file()
        assert set(service.get("depends_on", {})) <= SERVICES.keys()
        for mount in service["volumes"]:
            source = mount.partition(":")[0]
            assert (FOLDER / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
        assert service["restart"] == "unless-stopped"


def test_passwords_stand_in_no_file() -> None:
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            assert "PASSWORD" not in name or value.startswith("${POSTGRES_PASSWORD:?")
    for path in FOLDER.rglob("*.*"):
        assert not re.search(r"://\w+:\w+@", path.read_text(encoding="utf-8"))


def test_the_image_installs_extras_that_exist() -> None:
    [extras] = re.findall(r"/source\[(.*?)\]", (FOLDER / "Dockerfile").read_text(encoding="utf-8"))
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= known.keys()


def test_the_round_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_desk.py").write_text("def judge(exchanges): ...\ndef verify(corrections): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = read_config(FOLDER / "desk" / "round.toml")
    assert config.base_upstream is None
    compile((FOLDER / "desk" / "collecting.py").read_text(encoding="utf-8"), "collecting.py", "exec")
