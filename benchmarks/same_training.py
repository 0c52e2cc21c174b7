"""Whether two processes train what one does that accumulates the same rows in two parts.

    python benchmarks/same_training.py

An Aligner (SFT) and an upstream (DPO), through the whole path as in tests/boot/test_training_at_scale.py: rows of different
lengths, no dropout, no clipping, twenty steps over more than one pass, on the CPU. All differences are relative. Takes a minute
of processor time, prints the table and writes benchmarks/results/same_training.json.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import get_args

from stored import commit, write

from aligner_chain import __version__

sys.path += [str(Path(__file__).parent / "tables"), str(Path(__file__).parents[1] / "tests" / "support")]
import others
import twins


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        inputs = twins.write_inputs(Path(folder))
        kinds = {kind: twins.differences(kind, inputs, Path(folder) / kind) for kind in get_args(twins.Kind)}
    told = {
        "aligner_chain": __version__,
        "commit": commit(),
        "machine": platform.platform(),
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate", "trl")},
        "cpu_s": round(sum(os.times()[:4]), 1),  # with that of the trainings, which are processes of their own
        "steps": twins.STEPS,
        "kinds": kinds,
        "allowed": twins.ALLOWED,
    }
    write("same_training", told)
    print("\n".join(others.same_training(told)))


if __name__ == "__main__":
    main()
