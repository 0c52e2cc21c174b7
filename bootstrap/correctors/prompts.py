"""The sets of prompts of the Aligner's paper and its neighbours, from files that you have or from the hub."""

from __future__ import annotations

import csv
import json
import lzma
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from aligner_chain.errors import ConfigurationError, MissingExtraError

Columns = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A question of a set, and whether it is harmless; None where the set does not say."""

    question: str
    harmless: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSet:
    """Where a set of prompts is found and how its rows are read.

    `hub` is its place on the hub, `config` its part there and `hub_file` the file to take where a repository cannot be
    loaded as it is; `files` are the names its file has in a folder. `columns` may hold the question. `rows` is how many
    there are, of which the paper drew `sample`. `harmless` tells it of a row.
    """

    hub: str
    licence: str
    files: tuple[str, ...]
    columns: tuple[str, ...]
    rows: int
    config: str | None = None
    hub_file: str | None = None
    sample: int | None = None
    harmless: Callable[[Columns], bool | None] = lambda row: None


def _is_safe(row: Columns) -> bool | None:
    """Of XSTest: the unsafe prompts are the contrasts to the safe ones."""
    return None if "type" not in row else not str(row["type"]).startswith("contrast_")


PROMPT_SETS: Mapping[str, PromptSet] = MappingProxyType(
    {
        "beavertails": PromptSet(
            hub="PKU-Alignment/BeaverTails-Evaluation",
            licence="CC BY-NC 4.0",
            files=("test.jsonl", "test.jsonl.xz"),
            columns=("prompt",),
            rows=700,
        ),
        "harmfulqa": PromptSet(
            hub="declare-lab/HarmfulQA",
            licence="Apache-2.0",
            files=("data_for_hub.json",),
            columns=("question",),
            rows=1960,
            sample=700,
        ),
        "truthfulqa": PromptSet(
            hub="truthfulqa/truthful_qa",
            licence="Apache-2.0",
            files=("TruthfulQA.csv", "generation/validation-00000-of-00001.parquet"),
            columns=("question", "Question"),
            rows=817,
            config="generation",
            harmless=lambda row: True,
        ),
        "xstest": PromptSet(
            hub="Paul/XSTest",
            licence="CC BY 4.0",
            files=("xstest_prompts.csv", "xstest_v2_prompts.csv"),
            columns=("prompt",),
            rows=450,
            harmless=_is_safe,
        ),
        "alpacaeval": PromptSet(
            hub="tatsu-lab/alpaca_eval",
            licence="CC BY-NC 4.0",
            files=("alpaca_eval.json",),
            columns=("instruction",),
            rows=805,
            hub_file="alpaca_eval.json",  # its repository holds a script, which the library runs no more
            harmless=lambda row: True,
        ),
    }
)
"""The sets by their names."""


def load(
    name: str, source: str, *, paper_sample: bool = True, notice: Callable[[str], None] = lambda text: None
) -> list[Asked]:
    """The questions of a set.

    Args:
        name: Of the set, one of `PROMPT_SETS`.
        source: A folder that holds its file, the file itself, or an id on the hub, from where it is downloaded.
        paper_sample: Draws the same questions as the paper where that took only some of them (HarmfulQA).
        notice: Told where there are not as many rows as the set is known to have.

    Raises:
        ConfigurationError: There is no such set, file or column, or the hub did not give it.
        MissingExtraError: `source` is on the hub, or a Parquet file, and `datasets` is not installed.
    """
    if name not in PROMPT_SETS:
        raise ConfigurationError(f"There is no set of prompts {name!r}. There are {', '.join(PROMPT_SETS)}.")
    known = PROMPT_SETS[name]
    rows = _rows(known, source)
    if len(rows) != known.rows:
        notice(f"{source} has {len(rows):,} rows, and {name} is known to have {known.rows:,}")
    asked = [_asked(known, row, source) for row in rows]
    if paper_sample and known.sample is not None and known.sample < len(asked):
        return random.Random(42).sample(asked, known.sample)
    return asked


def _asked(known: PromptSet, row: Columns, source: str) -> Asked:
    question = next((row[name] for name in known.columns if isinstance(row.get(name), str)), None)
    if question is None:
        raise ConfigurationError(
            f"A row of {source} has no text in a column {' or '.join(map(repr, known.columns))}; it has "
            f"{', '.join(map(repr, row)) or 'no columns'}. Give the set's own file, as it is on the hub in {known.hub}."
        )
    return Asked(question=question, harmless=known.harmless(row))


def _rows(known: PromptSet, source: str) -> list[Columns]:
    path = Path(source).expanduser()
    if not path.exists():
        return _from_hub(known, source)
    if path.is_dir():
        found = next((path / name for name in known.files if (path / name).is_file()), None)
        if found is None:
            raise ConfigurationError(f"{path} holds no {' and no '.join(known.files)}. Give the file by its name.")
        path = found
    try:
        return list(_read(path))
    except (OSError, ValueError, lzma.LZMAError, csv.Error) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error


def _read(path: Path) -> Iterator[Columns]:
    """The rows of a file of CSV, Parquet, JSON or JSON lines, perhaps compressed with xz."""
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    with (lzma.open if path.suffix == ".xz" else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".csv":
            yield from csv.DictReader(file)
            return
        text = file.read()
    whole = json.loads(text) if text.lstrip().startswith("[") else None
    rows = [json.loads(line) for line in text.split("\n") if line.strip()] if whole is None else whole
    if not all(isinstance(row, Mapping) for row in rows):
        raise ValueError("not every row is a JSON object")
    yield from rows


def _parquet(path: Path) -> Sequence[Columns]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "train") from error
    rows: list[Columns] = parquet.read_table(path).to_pylist()
    return rows


def _from_hub(known: PromptSet, hub_id: str) -> list[Columns]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingExtraError("datasets", "train") from error
    try:
        if known.hub_file is not None:
            splits = load_dataset("json", data_files=f"hf://datasets/{hub_id}/{known.hub_file}")
        else:
            splits = load_dataset(hub_id, known.config)
    except Exception as error:  # the library raises its own, the hub's and the network's
        raise ConfigurationError(
            f"{hub_id} is neither a file or folder here nor a set that the hub gave ({type(error).__name__}: {error}). "
            f"Give the path to {known.files[0]}, or the hub's own id:  --from {known.hub}"
        ) from error
    if len(splits) != 1:
        raise ConfigurationError(f"{hub_id} has the splits {', '.join(splits)}. Download one and give its file.")
    [rows] = splits.values()
    return list(rows)
