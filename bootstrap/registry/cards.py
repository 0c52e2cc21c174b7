"""A model card: what a version was made of and what it is worth, for whoever gets its folder without the registry."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any, NamedTuple

from aligner_chain.calibration import Calibration
from aligner_chain.checkpoint import FILE as ALIGNER_FILE
from aligner_chain.checkpoint import AlignerMetadata, read_metadata
from aligner_chain.errors import CheckpointError
from bootstrap.registry.values import PairVersion, Version

FILE_NAME = "README.md"
PACKAGES = ("aligner-chain", "torch", "transformers", "peft", "trl")
LICENCES = frozenset(
    {
        *("apache-2.0", "mit", "isc", "zlib", "unlicense", "bsd", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "cc0-1.0"),
        *(
            "cc",
            "cc-by-3.0",
            "cc-by-4.0",
            "cc-by-sa-3.0",
            "cc-by-sa-4.0",
            "cc-by-nd-4.0",
            "cc-by-nc-3.0",
            "cc-by-nc-4.0",
        ),
        *("cc-by-nc-nd-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-permissive-1.0", "cdla-permissive-2.0"),
        *("cdla-sharing-1.0", "odc-by", "odbl", "epl-2.0", "eupl-1.2", "mpl-2.0", "agpl-3.0", "gpl-2.0", "gpl-3.0"),
        *("lgpl-2.1", "lgpl-3.0", "openrail", "bigscience-openrail-m", "bigcode-openrail-m", "afl-3.0", "artistic-2.0"),
        *("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "gemma"),
    }
)
"""Of the identifiers that the Hub takes in the head of a card (huggingface.co/docs/hub/repositories-licenses) the usual ones.
Any other licence is `other` there, with its name beside it."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def write_card(folder: Path, version: Version, pair: PairVersion | None, *, whole: bool, at: str) -> None:
    """Writes `README.md` in the Hub's form: a head for machines, and what a person asks first.

    Of a path on this machine only the last part is told, and of figures only numbers: no text that a user wrote.

    Args:
        folder: the exported folder.
        version: what it holds.
        pair: whose figures are shown, if any.
        whole: the weights are a whole model, and not an adapter.
        at: what the reader loads: a hub id, or the name of a folder.
    """
    card = _Card(version, pair, _described(folder), whole, at)
    (folder / FILE_NAME).write_text("\n".join(card.lines()) + "\n", encoding="utf-8")


class _Card(NamedTuple):
    """What a card tells of. `aligner` is what an Aligner says of itself."""

    version: Version
    pair: PairVersion | None
    aligner: AlignerMetadata | None
    whole: bool
    at: str

    def lines(self) -> Iterator[str]:
        name = self.aligner.identity if self.aligner else self.version.identity
        yield from ("---", *self._head(), "---", "", f"# {_plain(name)}", "", _WHAT[self.version.kind], "")
        yield from ("## Use", "", *self._use(), "")
        yield from ("## Made of", "", *_table(("", ""), self._facts()), "")
        yield from self._criteria()
        yield from self._measured()
        yield from ("## Limits", "", *(f"- {limit}" for limit in self._limits()))

    def _head(self) -> Iterator[str]:
        told: dict[str, object] = {"library_name": "transformers" if self.whole else "peft"}
        told |= {"pipeline_tag": "text-generation", **_licence_of_hub(self.licence)}
        if is_hub_id(self.base):
            told |= {"base_model": self.base, "base_model_relation": "finetune" if self.whole else "adapter"}
        told["tags"] = ["aligner-chain", self.version.kind]
        yield from (f"{name}: {json.dumps(value)}" for name, value in told.items())

    def _use(self) -> Iterator[str]:
        lines = _USE[self.version.kind] if self.whole or self.aligner else _USE_ADAPTER
        yield from ("```python", *(line.format(at=json.dumps(self.at)) for line in lines), "```")

    def _facts(self) -> Iterator[tuple[object, ...]]:
        manifest, data = self.version.manifest, self.data
        yield "version", f"{self.version.identity} of {self.version.created:%Y-%m-%d}"
        yield "base", self.base_told
        yield "licence of these weights", self.licence or _UNKNOWN
        yield "licence of the base", _text(manifest.get("base_licence")) or _UNKNOWN
        yield "training data, SHA-256", self.data_sha256 or _UNKNOWN
        yield "rows of training data", data.get("rows", _UNKNOWN)
        if sources := _numbers(data.get("sources")):
            yield "of these, by source", ", ".join(f"{name} {count}" for name, count in sources.items())
        if dropped := _numbers(data.get("dropped")):
            yield "left out, by reason", ", ".join(f"{name} {count}" for name, count in dropped.items())
        yield "licence of the data", _text(data.get("licence")) or _UNKNOWN
        if self.aligner is not None:
            yield "template", self.aligner.template
        noted = manifest.get("packages")
        yield from noted.items() if isinstance(noted, Mapping) else _installed()

    def _criteria(self) -> Iterator[str]:
        if self.aligner is None:
            return
        names = ", ".join(map(_cell, self.aligner.criteria))
        yield from ("## Criteria", "", f"It was trained to name what it corrects: {names or 'nothing'}.", "")
        rows = [*map(_calibrated, self.aligner.calibrations.values())]
        rows += [(name, f"{value:.4g}", "not calibrated") for name, value in self.aligner.thresholds.items()]
        if rows:
            yield from (*_table(("score", "answers above it are left", "missed bad answers"), rows), "")

    def _measured(self) -> Iterator[str]:
        if self.pair is None or not self.pair.figures:
            return
        rows = list(_flat(self.pair.figures, self.pair.figures.get("n")))
        yield from (f"## Measured as pair {self.pair.number}", "", self._setting(), "")
        yield from (*_table(("figure", "value", "95 % interval", "prompts"), rows), "")

    def _setting(self) -> str:
        pair = self.pair
        upstream = pair.upstream.identity if pair and pair.upstream else "a provider's upstream"
        return f"What the registry holds of this Aligner with {upstream}; figures of a round are of held-out prompts."

    def _limits(self) -> Iterator[str]:
        if self.pair is None or not self.pair.figures:
            yield "It was not measured: no pair of the registry that it is from has figures of it."
        else:
            yield "The figures hold for the upstream and the kind of prompts that they were measured with, and no others."
            yield "A figure without an interval is the share found among these prompts, and no more."
        if self.aligner is not None:
            yield from _limits_of(self.aligner)
        if not (self.data_sha256 and self.licence):
            yield "What is called not noted above is not known: ask who published it before you build on it."
        noted = self.version.manifest.get("limits")
        yield from map(_cell, noted if isinstance(noted, list | tuple) else ())

    @property
    def base(self) -> str:
        noted = _text(self.version.manifest.get("base"))
        return (self.aligner.base_model if self.aligner and not is_hub_id(noted) else "") or noted

    @property
    def base_told(self) -> str:
        if is_hub_id(self.base):
            return self.base
        return f"{Path(self.base).name}, a folder that is not on the Hub" if self.base else _UNKNOWN

    @property
    def licence(self) -> str:
        """What the manifest says, else what an Aligner says of itself."""
        return _text(self.version.manifest.get("licence")) or (self.aligner.licence if self.aligner else "")

    @property
    def data(self) -> Mapping[str, Any]:
        told = self.version.manifest.get("data")
        return told if isinstance(told, Mapping) else {}

    @property
    def data_sha256(self) -> str:
        return _text(self.data.get("sha256")) or (self.aligner.data_sha256 if self.aligner else "")


SAFE_TEMPLATES = ("aligner-chain/1",)
"""Those whose segments are set off by special tokens, which no text can spell."""
_UNKNOWN = "not noted"
_WHAT = {
    "aligner": "An Aligner: it reads a question and the answer of a chat model, and writes the corrected answer, or "
    "approves of it as it is. It is no chat model itself.",
    "upstream": "A chat model, trained on preferences between its own answers and their corrections.",
}
_USE = {
    "aligner": (
        "# pip install 'aligner-chain[local]'",
        "from aligner_chain import Aligner, Exchange",
        "aligner = Aligner.from_pretrained({at})",
        'print(aligner.correct([Exchange.of("the question", "the answer of your chat model")])[0].text)',
    ),
    "upstream": (
        "from transformers import pipeline",
        'chat = pipeline("text-generation", model={at})',
        'print(chat([{{"role": "user", "content": "the question"}}])[0]["generated_text"][-1]["content"])',
    ),
}
_USE_ADAPTER = (
    "# pip install peft: this is an adapter, and needs its base",
    "from peft import AutoPeftModelForCausalLM",
    "model = AutoPeftModelForCausalLM.from_pretrained({at})",
)


def is_hub_id(base: str) -> bool:
    """Whether a base is named as the Hub names a model, and is no folder here."""
    return bool(_HUB_ID.fullmatch(base)) and not Path(base).exists()


def _described(folder: Path) -> AlignerMetadata | None:
    """What an Aligner says of itself; nothing where it is none, or says it in a way that cannot be read."""
    try:
        return read_metadata(folder) if (folder / ALIGNER_FILE).exists() else None
    except CheckpointError:
        return None


def _licence_of_hub(licence: str) -> dict[str, str]:
    if not licence:
        return {}
    known = licence.lower()
    return {"license": known} if known in LICENCES else {"license": "other", "license_name": _plain(licence)}


def _calibrated(one: Calibration) -> tuple[object, ...]:
    bound = f"at most {one.alpha:.4g} with {1 - one.delta:.4g} confidence, from {one.n_bad} of {one.upstream or 'any upstream'}"
    return one.criterion, f"{one.threshold:.4g}", bound


def _limits_of(aligner: AlignerMetadata) -> Iterator[str]:
    yield "Nothing is known of languages and subjects that its training data does not hold."
    if not aligner.calibrations:
        yield "No threshold is calibrated: nothing bounds how many bad answers it leaves as they are."
    if aligner.template not in SAFE_TEMPLATES:
        yield (
            f"The delimiters of its template ({_cell(aligner.template)}) are plain text, which an answer can imitate: it is "
            "not proof against injection."
        )


def _installed() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield f"{name} (exported with)", installed(name)
        except PackageNotFoundError:
            continue


def _flat(figures: Mapping[str, Any], count: object, prefix: str = "") -> Iterator[tuple[object, ...]]:
    """The numbers among figures by name, each with the interval that stands beside it and how many prompts it is of."""
    interval = figures.get("interval")
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _flat(value, value.get("n", count), f"{prefix}{name} / ")
        elif isinstance(value, float):
            yield f"{prefix}{name}", f"{value:.4g}", _interval(interval), count if _is_number(count) else ""
            interval = None  # it is that of the first figure of its group
        elif _is_number(value) and name != "n":
            yield f"{prefix}{name}", value, "", ""


def _interval(value: object) -> str:
    if isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value)):
        return f"{value[0]:.4g} to {value[1]:.4g}"
    return ""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(told: object) -> dict[str, object]:
    return {_plain(name): one for name, one in told.items() if _is_number(one)} if isinstance(told, Mapping) else {}


def _table(names: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> Iterator[str]:
    yield from (f"| {' | '.join(names)} |", "|---" * len(names) + "|")
    for row in rows:
        yield "| " + " | ".join(map(_cell, row)) + " |"


def _cell(value: object) -> str:
    """A text that ends neither its cell nor its row, and is no markup."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", _plain(value))


def _plain(value: object) -> str:
    return " ".join(str(value).split())[:300]


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
