"""The demo's tokenizer: words first, then the phrases that occur often."""

from __future__ import annotations

import pytest

from bootstrap.demo.models import new_tokenizer

ANSWERS = [f"You can send it back. Tip: use tape. The {thing} is fine." for thing in ("pan", "lamp")]
QUESTIONS = ["Can you use it?", "Is the tape back?"]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return ANSWERS * 100 + QUESTIONS * 20


def pieces(texts: list[str], text: str) -> list[str]:
    tokenizer = new_tokenizer(texts)
    return [tokenizer.decode([token]) for token in tokenizer(text, add_special_tokens=False).input_ids]


def test_a_frequent_phrase_is_one_token_that_ends_with_its_sentence(texts: list[str]) -> None:
    assert pieces(texts, "You can send it back. Tip: use tape.") == [
        "You can send it back",
        ".",
        " Tip:",
        " use tape",
        ".",
    ]


def test_the_same_words_in_a_new_order_are_words(texts: list[str]) -> None:
    assert pieces(texts, "Can it tape use back?") == ["Can", " it", " tape", " use", " back", "?"]


def test_the_word_after_an_article_stays_a_token_of_its_own(texts: list[str]) -> None:
    assert pieces(texts, " The pan is fine.") == [" The", " pan", " is fine", "."]


def test_any_text_comes_back_as_it_was(texts: list[str]) -> None:
    tokenizer = new_tokenizer(texts)
    for text in ("Übergröße, 12 €\n\tdone", "<|end|> is text", "The quokka  can"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_each_number_and_chat_token_is_known(texts: list[str]) -> None:
    tokenizer = new_tokenizer([*texts, *["It came 12 days ago."] * 30])
    assert " 12" in [
        tokenizer.decode([token]) for token in tokenizer("It came 12 days", add_special_tokens=False).input_ids
    ]
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert tokenizer(rendered).input_ids[0] == tokenizer.convert_tokens_to_ids("<|user|>")
