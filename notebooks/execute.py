"""Executes the notebooks of this folder, as `make notebooks` does, and says which cell failed.

    python notebooks/execute.py [--write] [notebook ...]

They need a trained home in ALIGNER_HOME. With `--write` the outputs are stored, without what changes from run to run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

FOLDER = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(FOLDER.glob("*.ipynb")))
    parser.add_argument("--write", action="store_true", help="store the outputs in the notebooks")
    arguments = parser.parse_args()
    failed = [path for path in arguments.notebooks if not executed(path, write=arguments.write)]
    return int(bool(failed))


def executed(path: Path, *, write: bool) -> bool:
    notebook, started = nbformat.read(path, as_version=4), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        # Sockets in a folder of our own, since a TCP port would be open to everybody on the machine.
        sockets = Config(AsyncKernelManager={"transport": "ipc", "ip": f"{folder}/kernel"})
        client = NotebookClient(
            notebook,
            config=sockets,
            kernel_name="python3",
            timeout=300,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(path.parent)}},
        )
        try:
            client.execute()
        except CellExecutionError as error:
            print(f"{path.name}: failed\n{error}")
            return False
    print(f"{path.name}: {time.monotonic() - started:.0f} s")
    if write:
        nbformat.write(stable(notebook), path)
    return True


def stable(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without what differs between two runs that show the same."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            output.pop("transient", None)
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


if __name__ == "__main__":
    raise SystemExit(main())
