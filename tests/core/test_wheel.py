"""What the wheel holds. That it works by itself is checked in a clean environment by `.ci/wheel_check`."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import aligner_chain

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built with the installed backend, so nothing is fetched."""
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    [path] = folder.glob("*.whl")
    assert path.name == f"aligner_chain-{aligner_chain.__version__}-py3-none-any.whl"
    return zipfile.ZipFile(path)


def test_it_holds_both_packages_whole_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    ours = {
        path.relative_to(ROOT).as_posix()
        for package in ("aligner_chain", "bootstrap")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == ours
    assert {
        "aligner_chain/py.typed",
        "bootstrap/py.typed",
        "bootstrap/markup.css",
        "aligner_chain/audit/page.css",
    } <= packed


def test_the_base_asks_for_no_framework(wheel: zipfile.ZipFile) -> None:
    [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = wheel.read(name).decode()
    needed = [line for line in re.findall(r"^Requires-Dist: (.*)$", metadata, re.MULTILINE) if "extra ==" not in line]
    assert needed == ["platformdirs>=4"]


def test_it_brings_the_licence_and_both_commands(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert any(name.endswith("licenses/LICENSE") for name in names)
    [entry] = [name for name in names if name.endswith("entry_points.txt")]
    points = wheel.read(entry).decode()
    assert "aligner-chain = aligner_chain.cli:main" in points
    assert "aligner-bootstrap = bootstrap.cli:main" in points
