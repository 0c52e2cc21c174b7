"""Run by `wheel_check` with the clean environment's Python, outside the checkout."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from langchain_core.language_models import FakeListChatModel

import aligner_chain
from aligner_chain import Aligner
from aligner_chain.langchain import AlignerCorrector


def main() -> None:
    """Corrects an answer in a chain, once by a script and once on a server, and says what was found."""
    for heavy in ("torch", "transformers", "trl", "sqlalchemy", "llama_index"):
        if importlib.util.find_spec(heavy) is not None:
            sys.exit(f"{heavy} came along with [langchain,server]")
    require(Aligner.scripted(lambda exchange: exchange.answer.replace("five", "four")), "Two and two are four.")
    folder = Path(sys.argv[1])
    require(Aligner.from_server((folder / "url").read_text(), model="aligner", checkpoint=folder), "No.")
    print(f"aligner-chain {aligner_chain.__version__} from {aligner_chain.__file__}: corrected without torch")


def require(aligner: Aligner, corrected: str) -> None:
    """Ends with an error unless the chain gives this text."""
    chain = FakeListChatModel(responses=["Two and two are five."]) | AlignerCorrector(aligner=aligner)
    answer = chain.invoke("What are two and two?")
    if answer.text != corrected:
        sys.exit(f"the chain answered {answer.text!r}")


if __name__ == "__main__":
    main()
