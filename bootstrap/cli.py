"""The command `aligner-bootstrap`: the demo, training an Aligner and its data, rounds and their schedule, and what the registry serves.

Exit codes: 0 all went well, 1 a stage failed, 2 wrong usage or setup, 3 a gate refused the candidate or a check failed,
4 a budget is spent.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from aligner_chain import __version__
from aligner_chain.command_line import Parser, place_refused, speaking
from aligner_chain.errors import AlignerError
from bootstrap.commands import (
    annotate,
    data,
    demo,
    feedback,
    gate,
    registry,
    report,
    review,
    rounds,
    schedule,
    stats,
    store,
    training,
)
from bootstrap.commands import eval as evaluation
from bootstrap.errors import BootstrapError, missing_extra

SUBJECTS = (
    demo,
    annotate,
    training,
    store,
    stats,
    feedback,
    review,
    data,
    evaluation,
    rounds,
    gate,
    schedule,
    report,
    registry,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; `argv` defaults to the process's arguments."""
    return speaking("aligner-bootstrap", lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    _quiet_libraries()
    try:
        return int(arguments.run(arguments))
    except BootstrapError as error:
        print(f"aligner-bootstrap: {error}", file=sys.stderr)
        return 1
    except AlignerError as error:
        print(f"aligner-bootstrap: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (missing := missing_extra(error)) is None:
            raise
        print(f"aligner-bootstrap: {missing}", file=sys.stderr)
        return 2
    except OSError as error:
        if (refused := place_refused(error)) is None:
            raise
        print(f"aligner-bootstrap: {refused}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="aligner-bootstrap",
        description="Turns collected corrections into a better upstream and Aligner.",
        epilog="`aligner-chain doctor` looks at the installation and at what is served.",
    )
    parser.add_argument("--version", action="version", version=f"aligner-bootstrap {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for subject in SUBJECTS:
        subject.add(commands)
    return parser


def _quiet_libraries() -> None:
    """Keeps the libraries from phoning home and from their own bars and advice; before any of them is imported."""
    import warnings

    from bootstrap.sft import quiet_network

    quiet_network()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # TRL and transformers warn of what they themselves will change.
    warnings.filterwarnings("ignore", category=FutureWarning)


if __name__ == "__main__":
    sys.exit(main())
