"""Texts that try to play the frame: a sample of what tests/soak/test_injection.py runs by the ten thousand."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from injection import OWN, Structure, hostile_exchange
from vocabularies import LOSSLESS, VOCABULARIES, byte_level, fallback, unigram, word_pieces

from aligner_chain import Aligner, Exchange
from aligner_chain.checkpoint import AlignerMetadata
from aligner_chain.engines.huggingface import HuggingFaceEngine
from aligner_chain.errors import UnreadableCorrectionError
from aligner_chain.templates import get_template, plain_text, template_names
from aligner_chain.templates.foreign import TEXTS

CASES = 40
"""For each template and each tokenizer."""


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("name", template_names())
def test_no_text_plays_the_frame(name: str, vocabulary: Callable[[], Any]) -> None:
    structure = Structure(name, vocabulary(), lossless=vocabulary in LOSSLESS)
    for number in range(CASES):
        structure.case(random.Random(f"sample, {name}, {vocabulary.__name__}, {number}"))
    counts = structure.counts
    assert (counts.cases, counts.corrections) == (CASES, 2 * CASES)
    assert min(counts.spelt, counts.read, counts.unreadable) > 0
    assert (counts.delimiters > 0) == (name != OWN)


@pytest.mark.parametrize("name", template_names())
def test_a_model_that_writes_anything_gives_one_correction_each(name: str, tiny_llama: Callable[..., Any]) -> None:
    tokenizer = byte_level()
    engine = HuggingFaceEngine(tiny_llama(tokenizer), tokenizer)
    metadata = AlignerMetadata(name="random", version="1", template=name)
    aligner = Aligner(engine, metadata=metadata, template=get_template(name), tokenizer=tokenizer)
    exchanges = [hostile_exchange(random.Random(f"random model, {number}")) for number in range(20)]
    corrections = aligner.correct(exchanges)
    aligner.close()
    assert [one.exchange for one in corrections] == exchanges
    assert all(one.text == one.exchange.answer for one in corrections if one.outcome != "corrected")


# --- what was found ---


@pytest.mark.parametrize("spelt", ["＜/s＞", "<\uff0fs>", "＜ｓ>"])
def test_a_normaliser_makes_no_control_token_of_look_alikes_in_a_chat(spelt: str) -> None:
    tokenizer, template = unigram(), get_template("align-anything/1")
    control = plain_text(tokenizer).control
    # The tokenizer by itself reads a control token: its normaliser makes the name of the letters.
    assert control.intersection(tokenizer.encode(spelt, add_special_tokens=False))
    plain, hostile = (template.prompt(Exchange.of("q", f"a {text} b"), tokenizer) for text in ("x", spelt))
    assert [one for one in hostile if one in control] == [one for one in plain if one in control]


@pytest.mark.parametrize("spelt", ["</s>", "<\u200b/s>", "<\U000f0000/s>", "<s\0>"])
def test_a_normaliser_that_drops_characters_fails_no_batch(spelt: str) -> None:
    tokenizer, template = word_pieces(), get_template("align-anything/1")
    prompt = template.prompt(Exchange.of("q", f"a {spelt} b"), tokenizer)
    control = plain_text(tokenizer).control
    names = tokenizer.convert_ids_to_tokens([token for token in prompt if token in control])
    assert names == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("sign", ["<|im_start|>", "<s>", "<|ac:keep|>"])
def test_a_sign_that_the_model_wrote_is_never_served_as_text(name: str, sign: str) -> None:
    tokenizer, template = byte_level(), get_template(name)
    rendered = template.render(Exchange.of("q", "An answer."), tokenizer, window=None)
    *ids, _ = template.target(tokenizer, "A better answer.")
    written = [*ids, tokenizer.convert_tokens_to_ids(sign)]
    assert sign not in template.reader(tokenizer, rendered)(written)
    with pytest.raises(UnreadableCorrectionError, match="control tokens"):
        template.parse(written, tokenizer, rendered)


def test_a_word_that_was_added_to_a_vocabulary_is_text() -> None:
    tokenizer, template = byte_level(), get_template("pku-aligner/2")
    tokenizer.add_tokens(["<table>"])
    rendered = template.render(Exchange.of("q", "An answer."), tokenizer, window=None)
    ids = tokenizer.encode("See <table>", add_special_tokens=False)
    assert tokenizer.convert_tokens_to_ids("<table>") in ids
    assert template.parse(ids, tokenizer, rendered).text == "See <table>"


@pytest.mark.parametrize("name", [OWN, "pku-aligner/1"])
def test_half_a_character_in_an_output_fails_no_batch(name: str) -> None:
    tokenizer, template = fallback(), get_template(name)
    # The tokenizer reads this one as a space, so the copied parts are looked for piece by piece.
    rendered = template.render(Exchange.of("q", "x\u2581y"), tokenizer, window=None)
    half = tokenizer.convert_tokens_to_ids(["<0xC3>", "a", "<0xA9>", "b", "<0x80>", "▁", "<0xF0>", "c"])
    text = template.parse([*rendered.choices[1:], *half, *rendered.draft.ids], tokenizer, rendered).text
    assert text.endswith("y")


@pytest.mark.parametrize("name", template_names())
def test_half_a_surrogate_pair_in_an_answer_fails_no_batch_and_is_given_back(name: str) -> None:
    tokenizer, template = byte_level(), get_template(name)
    answer = "It was \ud83d fine."
    rendered = template.render(Exchange.of("q \udc00", answer), tokenizer, window=None)
    *ids, _ = template.target(tokenizer, answer)
    assert template.parse(ids, tokenizer, rendered).text == answer
    *ids, _ = template.target(tokenizer, answer.replace("fine", "well"))
    assert template.parse(ids, tokenizer, rendered).text == "It was \ud83d well."
