"""A conversation under the tokenizer's own chat template, in which no text plays a role it was not given."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aligner_chain.errors import TemplateError
from aligner_chain.exchange import Turn
from aligner_chain.templates import chat_prompt, plain_text

quick = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
SPELT = ["<|im_end|>", "<|im_start|>system\n", "<tool_call>", "</s>", "<|im_", "end|>", "|>", "<"]
nasty = st.lists(st.one_of(st.sampled_from(SPELT), st.text(max_size=6)), max_size=6).map("".join)


def turns_of(*texts: str) -> list[Turn]:
    return [Turn(role=("user", "assistant")[at % 2], text=text) for at, text in enumerate(texts)]


def applied(tokenizer: Any, turns: list[Turn]) -> list[int]:
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])


@given(first=st.text(max_size=20), second=st.text(max_size=20), third=st.text(max_size=20))
@quick
def test_harmless_texts_give_what_the_tokenizer_gives(tokenizer: Any, first: str, second: str, third: str) -> None:
    turns = turns_of(first, second, third)
    assert list(chat_prompt(tokenizer, turns)) == applied(tokenizer, turns)


@given(first=nasty, second=nasty, third=nasty)
@quick
def test_no_text_adds_a_control_token(tokenizer: Any, first: str, second: str, third: str) -> None:
    turns, plain = turns_of(first, second, third), plain_text(tokenizer)
    ids = chat_prompt(tokenizer, turns)
    harmless = applied(tokenizer, turns_of("a", "b", "c"))
    assert [token for token in ids if token in plain.control] == [token for token in harmless if token in plain.control]


@given(text=nasty)
@quick
def test_a_text_is_read_as_its_letters(tokenizer: Any, text: str) -> None:
    plain = plain_text(tokenizer)
    expected = "<|im_start|>user\n" + text.strip() + "<|im_end|>\n<|im_start|>assistant\n"
    assert plain.decode(chat_prompt(tokenizer, turns_of(text))) == expected


def test_a_control_token_begun_by_the_template_is_not_completed_by_a_text(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}<|im_{{ m['content'] }}\n{% endfor %}<|im_start|>"
    control = plain_text(tokenizer).control
    assert sum(token in control for token in applied(tokenizer, turns_of("end|>"))) == 2
    ids = chat_prompt(tokenizer, turns_of("end|>"))
    assert [token in control for token in ids] == [False] * (len(ids) - 1) + [True]
    assert plain_text(tokenizer).decode(ids) == "<|im_end|>\n<|im_start|>"


def test_overlapping_names_are_both_broken_up(tokenizer: Any) -> None:
    tokenizer.add_tokens(["<ab>", "b><c"])
    control = plain_text(tokenizer).control
    harmless = [token for token in applied(tokenizer, turns_of("x")) if token in control]
    ids = chat_prompt(tokenizer, turns_of("<ab><c"))
    assert [token for token in ids if token in control] == harmless


def test_the_mark_is_a_character_that_no_text_holds(tokenizer: Any) -> None:
    text = "\U000f0000<|im_end|>\U000f0001"
    decoded = plain_text(tokenizer).decode(chat_prompt(tokenizer, turns_of(text)))
    assert text in decoded


def test_roles_and_templates_that_do_not_fit(tokenizer: Any) -> None:
    with pytest.raises(TemplateError, match="im_start"):
        chat_prompt(tokenizer, [Turn(role="<|im_start|>", text="x")])
    tokenizer.chat_template = "{{ raise_exception('only one turn') }}"
    with pytest.raises(TemplateError, match="only one turn"):
        chat_prompt(tokenizer, turns_of("x"))
    tokenizer.chat_template = None
    with pytest.raises(TemplateError, match=r"tokenizer\.chat_template"):
        chat_prompt(tokenizer, turns_of("x"))
