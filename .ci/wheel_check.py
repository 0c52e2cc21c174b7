"""Run by `wheel_check` with the clean environment's Python, outside the checkout."""

from __future__ import annotations

import importlib.util
import sys

from langchain_core.language_models import FakeListChatModel

import aligner_chain
from aligner_chain import Aligner
from aligner_chain.langchain import AlignerCorrector


def main() -> None:
    """Corrects one answer in a chain and says what was found."""
    for heavy in ("torch", "transformers", "trl", "sqlalchemy", "llama_index"):
        if importlib.util.find_spec(heavy) is not None:
            sys.exit(f"{heavy} came along with [langchain]")
    aligner = Aligner.scripted(lambda exchange: exchange.answer.replace("five", "four"))
    chain = FakeListChatModel(responses=["Two and two are five."]) | AlignerCorrector(aligner=aligner)
    answer = chain.invoke("What are two and two?")
    if answer.text != "Two and two are four.":
        sys.exit(f"the chain answered {answer.text!r}")
    print(f"aligner-chain {aligner_chain.__version__} from {aligner_chain.__file__}: corrected without torch")


if __name__ == "__main__":
    main()
