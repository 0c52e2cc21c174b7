"""Files that survive a power cut, their hashes, and the errors by which a disk says that it is full."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import time
from pathlib import Path

# safetensors and tokenizers are written in Rust: a full disk arrives from them as their own or a bare Exception.
_RUST_IO_ERROR = re.compile(r"\(os error \d+\)")


def write_synced(path: Path, text: str) -> None:
    """Writes a text file and waits until it is on the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Waits until everything in a folder is on the disk."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def replace_file(path: Path, staged: Path) -> None:
    """Puts `staged`, already on the disk, in the place of `path`: a reader sees the old file or the new one."""
    staged.replace(path)
    sync(path.parent)


def remove_abandoned(parent: Path, prefix: str, older_than_s: float) -> None:
    """Removes files and folders of this prefix to which nothing was written for a time: a killed process left them."""
    for path in parent.glob(f"{prefix}*"):
        if time.time() - _last_written(path) > older_than_s:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_sha256(folder: Path) -> str:
    """The SHA-256 of all files of a folder: their names and their bytes, in the order of the names."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def is_disk_error(error: Exception) -> bool:
    """Whether an error says that files could not be written, whichever library raised it."""
    safetensors = sys.modules.get("safetensors")  # loaded, where the error is one of its own
    own = () if safetensors is None else (safetensors.SafetensorError,)
    return isinstance(error, (OSError, *own)) or bool(_RUST_IO_ERROR.search(str(error)))


def _last_written(path: Path) -> float:
    try:
        return max(part.lstat().st_mtime for part in [path, *path.rglob("*")])
    except FileNotFoundError:  # somebody else is at work there
        return time.time()
