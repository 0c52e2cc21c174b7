"""Exports: a folder of rows, the ids that they were made from, and a manifest that says what they are."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from aligner_chain.exchange import uuid7
from bootstrap.errors import ExportError
from bootstrap.files import remove_abandoned, sync, sync_tree
from bootstrap.pairs.building import Kept, Progress, Stream, stream
from bootstrap.pairs.filters import DEFAULTS, Filters
from bootstrap.pairs.forms import FORMS, Name
from bootstrap.pairs.manifests import IDS, MANIFEST, ExportManifest, new_manifest
from bootstrap.records import Split

if TYPE_CHECKING:
    import pyarrow as pa

    from bootstrap.store import CorrectionStore

Format = Literal["jsonl", "parquet", "datasets"]

_BATCH = 1000
_ABANDONED_S = 24 * 60 * 60


def export(
    store: CorrectionStore,
    out: str | os.PathLike[str],
    *,
    form: Name = "preference",
    format: Format = "jsonl",  # noqa: A002  (the word that everybody looks for)
    split: Split = "train",
    filters: Filters = DEFAULTS,
    progress: Progress | None = None,
) -> ExportManifest:
    """Writes rows of one split into a new folder, in bounded memory, and returns its manifest.

    The folder holds the rows, `ids.txt` (the id of the record that each row was made from, line by line) and
    `manifest.json`. It is there whole or not at all: it is written beside its place and moved there when it is on the disk.

    Args:
        store: where the records are.
        out: a folder that is new or empty.
        form: "preference" and "prompt-completion" are TRL's conversational forms, "triples" are what an Aligner is
            trained on, "openai-preference" is that of hosted preference fine-tuning.
        format: "jsonl", "parquet", or "datasets": a folder for `datasets.load_from_disk`.
        split: held-out ones are never in one folder with the training split.
        filters: what is left out.
        progress: told after every 500 records.

    Raises:
        ExportError: the folder is not empty, cannot be written, the form does not fit the format, or no row is left.
    """
    folder = Path(out).absolute()
    _check(folder, form, format)
    with (
        _staged(folder) as staged,
        stream(store, FORMS[form].maker(filters), split=split, filters=filters, progress=progress) as rows,
    ):
        count = _write(rows, staged, form, format)
        if not count:
            raise ExportError(_nothing(rows, split))
        told = new_manifest(staged, rows, count=count, split=split, form=form, format=format, filters=filters)
        (staged / MANIFEST).write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return told


def _check(folder: Path, form: Name, format: Format) -> None:  # noqa: A002
    if form not in FORMS:
        raise ExportError(f"There is no form {form!r}. The forms: {', '.join(FORMS)}")
    if format not in _WRITERS:
        raise ExportError(f"There is no format {format!r}. The formats: {', '.join(_WRITERS)}")
    if FORMS[form].schema is None and format != "jsonl":
        raise ExportError(f"Providers take {form} as JSON lines only. Leave out --format {format}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(_taken(folder))


def _taken(folder: Path) -> str:
    return f"{folder} is there already. Name a new folder with --out; nothing was written."


def _nothing(rows: Stream[Any], split: Split) -> str:
    dropped = ", ".join(f"{count} {reason}" for reason, count in rows.dropped.most_common())
    return (
        f"No row is left of {rows.read} corrections of the split {split} (left out: {dropped or 'none'}). Nothing was "
        "written.\nTo see what each filter drops:  aligner-bootstrap pairs --store URL"
    )


@contextlib.contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A folder beside the one that is wanted, moved into its place at the end; an error leaves neither."""
    prefix = f".{folder.name}.partial-"
    staged = folder.parent / f"{prefix}{uuid7()}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder.parent, prefix, older_than_s=_ABANDONED_S)
        staged.mkdir()
        yield staged
        sync_tree(staged)
        staged.replace(folder)
        sync(folder.parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and folder.is_dir():  # another export was quicker
            raise ExportError(_taken(folder)) from error
        raise ExportError(f"{folder} cannot be written: {error}. Free some space, or choose another place.") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _write(rows: Stream[Any], staged: Path, form: Name, format: Format) -> int:  # noqa: A002
    """Writes rows and their ids, and returns how many there were; without a row nothing, since not every format can be empty."""
    left = iter(rows)
    if (first := next(left, None)) is None:
        return 0
    with (staged / IDS).open("w", encoding="utf-8") as ids:
        count = 0

        def fields() -> Iterator[dict[str, Any]]:
            nonlocal count
            kept: Kept[Any]
            for kept in chain([first], left):
                count += 1
                ids.write(f"{kept.id}\n")
                yield FORMS[form].fields(kept)

        _WRITERS[format](fields(), staged, form)
    return count


def _write_jsonl(rows: Iterable[dict[str, Any]], folder: Path, form: Name) -> None:
    with (folder / f"{form}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_parquet(rows: Iterable[dict[str, Any]], folder: Path, form: Name) -> None:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetWriter(folder / f"{form}.parquet", _schema(form)) as writer:
        for batch in _batches(rows, _schema(form)):
            writer.write_batch(batch)


def _write_datasets(rows: Iterable[dict[str, Any]], folder: Path, form: Name) -> None:
    """Writes what `Dataset.save_to_disk` writes, by way of a file that the library reads piece by piece."""
    from datasets import Dataset

    source, cache = folder / "source", folder / "cache"
    source.mkdir()
    _write_parquet(rows, source, form)
    data = Dataset.from_parquet(str(source / f"{form}.parquet"), cache_dir=str(cache))
    data.save_to_disk(str(folder / "dataset"))
    del data
    shutil.rmtree(source)
    shutil.rmtree(cache)


def _batches(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    left = iter(rows)
    while batch := list(islice(left, _BATCH)):
        yield pa.RecordBatch.from_pylist(batch, schema=schema)


def _schema(form: Name) -> pa.Schema:
    schema = FORMS[form].schema
    if schema is None:
        raise ExportError(f"{form} has no columns.")
    return schema()


_WRITERS: Mapping[Format, Callable[[Iterable[dict[str, Any]], Path, Name], None]] = MappingProxyType(
    {"jsonl": _write_jsonl, "parquet": _write_parquet, "datasets": _write_datasets}
)
