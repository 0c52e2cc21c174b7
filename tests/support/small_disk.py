"""A real file system of a fixed size, which can be filled up and given room again."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_CHUNK = b"\1" * 4096

# Waits until whoever started it closes the pipe or ends, however that may be, and then unmounts. Lazily, since a process
# that is being killed may still hold a file.
_GUARD = 'cat > /dev/null; exec umount --lazy -- "$1"'


class SmallDisk:
    """A mounted tmpfs: `path` is where; what is written beside the ballast is the test's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self, *, leave: int = 0) -> None:
        """Takes all room but `leave` bytes, which others may take meanwhile. A page of 4 KiB is the least there is."""
        with self._ballast.open("ab", buffering=0) as file:
            try:
                while _free(self.path) > leave or not leave:
                    file.write(_CHUNK)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def make_room(self) -> None:
        """Takes the ballast away."""
        self._ballast.unlink(missing_ok=True)

    def grow(self, size: int) -> None:
        """Makes the disk larger and leaves the ballast."""
        _mount("-o", f"remount,size={size}", str(self.path))


@contextmanager
def small_disk(path: Path, size: int) -> Iterator[SmallDisk]:
    """A disk of `size` bytes at a new folder, unmounted at the end, also where this process is killed before that.

    Skips the test where nothing may be mounted.
    """
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("a disk of a fixed size is mounted for this, which takes root on Linux")
    path.mkdir()
    if refused := _mount("-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(path)):
        pytest.skip(f"a disk of a fixed size is mounted for this, which is refused here: {refused}")
    guard = subprocess.Popen(
        ["sh", "-c", _GUARD, "sh", str(path)],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C at the terminal must not end it
    )
    try:
        yield SmallDisk(path)
    finally:
        guard.communicate()
        assert not os.path.ismount(path)


def _mount(*arguments: str) -> str:
    """Calls mount and returns what it complains of, "" where it does not."""
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"


def _free(path: Path) -> int:
    told = os.statvfs(path)
    return told.f_bavail * told.f_frsize
