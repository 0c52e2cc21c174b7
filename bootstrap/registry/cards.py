"""A model card: what a version was made of, for whoever gets its folder without the registry."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from bootstrap.registry.values import PairVersion, Version

FILE_NAME = "README.md"
PACKAGES = ("aligner-chain", "torch", "transformers", "peft", "trl")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def write_card(folder: Path, version: Version, pair: PairVersion | None, *, whole: bool) -> None:
    """Writes `README.md` in the Hub's form: a head for machines, and what a person asks first.

    Of a path on this machine only the last part is told.

    Args:
        folder: the exported folder.
        version: what it holds.
        pair: whose figures are shown, if any.
        whole: the weights are a whole model, and not an adapter.
    """
    base, licence = _text(version.manifest.get("base")), _licence(folder, version)
    head = {"library_name": "transformers" if whole else "peft", "pipeline_tag": "text-generation"}
    head |= {"license": licence.lower()} if licence else {}
    head |= {"base_model": base} if _is_hub_id(base) else {}
    lines = ["---", *(f"{name}: {json.dumps(value)}" for name, value in head.items())]
    lines += ["tags:", "- aligner-chain", f"- {version.kind}", "---", "", f"# {version.identity}", ""]
    lines += [_USE[version.kind] if whole else _USE_ADAPTER, "", *_table(_facts(version, base, licence))]
    if pair is not None and pair.figures:
        lines += ["", f"## Measured as pair {pair.number}", "", *_table(_flat(pair.figures))]
    (folder / FILE_NAME).write_text("\n".join(lines) + "\n", encoding="utf-8")


_USE = {
    "aligner": "Corrects the answers of a chat model:  `Aligner.from_pretrained(folder)` of the package `aligner-chain`.",
    "upstream": "A chat model:  `AutoModelForCausalLM.from_pretrained(folder)` of the package `transformers`.",
}
_USE_ADAPTER = (
    "An adapter: it needs its base.  `AutoPeftModelForCausalLM.from_pretrained(folder)` of the package `peft`."
)


def _facts(version: Version, base: str, licence: str) -> Iterator[tuple[str, object]]:
    data = version.manifest.get("data")
    yield "made", f"{version.created:%Y-%m-%d}"
    yield "base", base if _is_hub_id(base) else Path(base).name or "not noted"
    yield "training data (SHA-256)", (data.get("sha256") if isinstance(data, Mapping) else None) or "not noted"
    yield "licence", licence or "not noted"
    noted = version.manifest.get("packages")
    yield from noted.items() if isinstance(noted, Mapping) else _installed()


def _licence(folder: Path, version: Version) -> str:
    """What the manifest says, else what an Aligner says of itself."""
    if noted := _text(version.manifest.get("licence")):
        return noted
    try:
        told = json.loads((folder / "aligner.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return ""
    return _text(told.get("licence")) if isinstance(told, dict) else ""


def _installed() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield f"{name} (exported with)", installed(name)
        except PackageNotFoundError:
            continue


def _flat(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} / ")
        else:
            yield f"{prefix}{name}", f"{value:.4g}" if isinstance(value, float) else value


def _table(rows: Iterator[tuple[str, object]]) -> Iterator[str]:
    yield from ("| | |", "|---|---|")
    for row in rows:
        yield "| " + " | ".join(map(_cell, row)) + " |"


def _cell(value: object) -> str:
    """A text that ends neither its cell nor its row, and is no markup."""
    text = " ".join(str(value).split())[:300]
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", text)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _is_hub_id(base: str) -> bool:
    return bool(_HUB_ID.fullmatch(base)) and not Path(base).exists()
