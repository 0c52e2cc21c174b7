"""Run by `wheel_check` with our own environment's Python: serves a tiny Aligner that corrects everything to one text.

The folder of its checkpoint is given; when it serves, the address is in the file `url` there. It ends with its standard input.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import by_heart
from completions_server import CompletionsServer
from vocabularies import unprepared

from aligner_chain.engines.huggingface import HuggingFaceEngine


def main() -> None:
    """Serves until its standard input is closed."""
    folder = by_heart.always(Path(sys.argv[1]), unprepared())
    with CompletionsServer(HuggingFaceEngine.from_pretrained(folder)) as server:
        (folder / "url.new").write_text(server.url)
        (folder / "url.new").rename(folder / "url")
        sys.stdin.read()


if __name__ == "__main__":
    main()
