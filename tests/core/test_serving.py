"""What is served now, read from the file that a registry writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aligner_chain.errors import AlignerNotConfiguredError, ConfigurationError
from aligner_chain.serving import Served, ServedModel, home, read_served, resolve_aligner

PAIR = {
    "schema": 1,
    "pair": "3",
    "upstream": {"identity": "upstream@3", "path": "upstream/3"},
    "aligner": {"identity": "aligner@2", "path": "aligner/2"},
}


@pytest.fixture(autouse=True)
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home that serves nothing."""
    monkeypatch.setenv("ALIGNER_HOME", str(tmp_path))
    monkeypatch.delenv("ALIGNER_MODEL", raising=False)
    return tmp_path


def serve(registry: Path, **changed: object) -> None:
    (registry / "served.json").write_text(json.dumps({**PAIR, **changed}), encoding="utf-8")


def test_home_is_absolute_whatever_the_variable_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGNER_HOME", "here/home")
    assert home() == tmp_path / "here" / "home"
    monkeypatch.setenv("ALIGNER_HOME", "~/home")
    assert home() == Path.home() / "home"


def test_home_without_the_variable_is_the_users_data_folder_never_the_working_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALIGNER_HOME")
    assert home().is_absolute()
    assert home().name == "aligner-chain"
    assert tmp_path not in home().parents


def test_paths_are_relative_to_the_home(registry: Path) -> None:
    serve(registry)
    assert read_served() == Served(
        pair="3",
        upstream=ServedModel(identity="upstream@3", path=registry / "upstream/3"),
        aligner=ServedModel(identity="aligner@2", path=registry / "aligner/2"),
    )


def test_a_home_can_be_named(registry: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    serve(other, pair="9")
    served = read_served(other)
    assert served is not None
    assert (served.pair, served.aligner.path) == ("9", other / "aligner/2")
    assert read_served() is None


def test_an_absolute_path_stays_and_an_upstream_may_be_missing(registry: Path) -> None:
    serve(registry, upstream=None, aligner={"identity": "hub@1", "path": "/models/aligner"})
    served = read_served()
    assert served is not None
    assert served.upstream is None
    assert served.aligner.path == Path("/models/aligner")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '"3"',
        '{"schema": 1}',
        json.dumps({**PAIR, "aligner": None}),
        json.dumps({**PAIR, "aligner": "a@1"}),
    ],
)
def test_a_broken_file_is_an_error_with_ways_out(registry: Path, text: str) -> None:
    (registry / "served.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"served\.json") as caught:
        read_served()
    for way_out in ("aligner-bootstrap registry list", "aligner-bootstrap rollback", "export ALIGNER_MODEL="):
        assert way_out in str(caught.value)


def test_a_schema_of_a_later_version_asks_for_an_upgrade(registry: Path) -> None:
    serve(registry, schema=2)
    with pytest.raises(ConfigurationError, match="schema 2") as caught:
        read_served()
    assert "pip install --upgrade aligner-chain" in str(caught.value)


def test_the_variable_comes_before_the_registry(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(registry)
    monkeypatch.setenv("ALIGNER_MODEL", "somebody/aligner")
    assert resolve_aligner() == "somebody/aligner"


def test_the_served_aligner_is_taken(registry: Path) -> None:
    serve(registry)
    (registry / "aligner/2").mkdir(parents=True)
    assert resolve_aligner() == str(registry / "aligner/2")


def test_a_served_folder_that_is_gone_is_an_error(registry: Path) -> None:
    serve(registry)
    with pytest.raises(ConfigurationError, match="aligner@2") as caught:
        resolve_aligner()
    assert "aligner-bootstrap rollback" in str(caught.value)


def test_no_aligner_at_all_names_every_way_to_one(registry: Path) -> None:
    with pytest.raises(AlignerNotConfiguredError) as caught:
        resolve_aligner()
    for way in (
        "Aligner.from_chat_model(",
        "export ALIGNER_MODEL=",
        "aligner-bootstrap train-aligner",
        "aligner-bootstrap demo",
    ):
        assert way in str(caught.value)
    assert str(registry) in str(caught.value)
