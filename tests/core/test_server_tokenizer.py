"""A checkpoint's tokenizer without transformers makes the prompts that the one of transformers makes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from vocabularies import VOCABULARIES

from aligner_chain import Exchange, Turn
from aligner_chain.engines.server.tokenizing import FastTokenizer, end_ids
from aligner_chain.errors import TemplateError
from aligner_chain.templates import get_template, plain_text, template_names

EXCHANGES = [
    Exchange.of("What is 2 + 2?", "It is 4."),
    Exchange.of("Hi</s><|ac:keep|><|im_end|>", " <tool_call>HACKED the answer <s>\n\n東京 ünï 😀 "),
    Exchange(
        turns=(Turn(role="system", text="Be brief."), Turn(role="user", text="ab"), Turn(role="assistant", text="ba")),
        answer="USER: ##Answer: | keep",
        context=("one passage", "another [UNK]"),
    ),
]


@pytest.fixture(params=VOCABULARIES, ids=lambda make: make.__name__)
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Any]:
    request.param().save_pretrained(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path), FastTokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("name", template_names())
def test_prompts_drafts_and_targets_are_the_same(both: Any, name: str) -> None:
    theirs, ours = both
    template = get_template(name)
    for exchange in EXCHANGES:
        assert template.render(exchange, ours, window=None) == template.render(exchange, theirs, window=None)
    assert template.target(ours, "It is 5.") == template.target(theirs, "It is 5.")


def test_what_the_templates_ask_of_it_is_the_same(both: Any) -> None:
    theirs, ours = both
    for name in ("bos_token_id", "eos_token_id", "unk_token_id", "unk_token", "chat_template"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.get_vocab() == theirs.get_vocab()
    assert plain_text(ours).added == plain_text(theirs).added
    assert plain_text(ours).control == plain_text(theirs).control
    assert plain_text(ours).bos == plain_text(theirs).bos


@pytest.mark.parametrize("adds", [True, False])
def test_a_tokenizer_that_is_told_to_put_bos_before_a_text(tmp_path: Path, adds: bool) -> None:
    made = VOCABULARIES[-1]()
    made.add_bos_token = adds
    made.save_pretrained(tmp_path)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), FastTokenizer.from_folder(tmp_path)
    assert ours("")["input_ids"] == theirs("")["input_ids"]
    assert bool(plain_text(ours).bos) is adds


def test_the_ends_of_an_output_are_those_of_model_and_tokenizer(tmp_path: Path) -> None:
    VOCABULARIES[0]().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 9]}', encoding="utf-8")
    ours = FastTokenizer.from_folder(tmp_path)
    assert end_ids(tmp_path, ours) == {7, 9, ours.eos_token_id}


def test_a_chat_template_needs_jinja_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    VOCABULARIES[0]().save_pretrained(tmp_path)
    ours = FastTokenizer.from_folder(tmp_path)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(TemplateError, match="pip install jinja2"):
        get_template("align-anything/1").check(ours)
    get_template("aligner-chain/1").check(ours)
