"""Prints the help of every script that is named, in one process, so that what they all import is imported once."""

from __future__ import annotations

import runpy
import sys
from contextlib import suppress
from pathlib import Path


def main(scripts: list[str]) -> None:
    path, own = list(sys.path), Path(scripts[0]).resolve().parent
    for script in scripts:
        sys.stdout.write(f"# {script}\n")
        sys.stdout.flush()
        folder = Path(script) if Path(script).is_dir() else Path(script).parent
        sys.path[:], sys.argv[:] = [str(folder), *path], [script, "--help"]
        with suppress(SystemExit):  # with which argparse ends a help
            runpy.run_path(script, run_name="__main__")
        _forget(own)


def _forget(folder: Path) -> None:
    """Several folders of benchmarks have modules of one name."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name != "__main__" and file is not None and Path(file).resolve().is_relative_to(folder):
            del sys.modules[name]


if __name__ == "__main__":
    main(sys.argv[1:])
