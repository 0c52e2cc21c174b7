"""The examples of docs/langchain.md, one after the other, as a reader would type them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pages import examples
from upstreams import StreamingUpstream

PAGE = Path(__file__).parents[2] / "docs" / "langchain.md"


def test_the_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"llm": StreamingUpstream()}
    for example in examples(PAGE):
        exec(compile(example, str(PAGE), "exec"), names)
    assert len(examples(PAGE)) == 8
    assert (
        capsys.readouterr().out
        == "a good answer corrected\n" + "a good answer" * 2 + "\na good answer\na good answer\n"
    )
    assert names["agent"].invoke({"messages": [("human", "q")]})["messages"][-1].text == "a good answer"
    assert names["twice"].invoke({"question": "q", "answer": "bad"}).text == "good"
