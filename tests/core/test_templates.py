"""The templates: their texts byte for byte, the window, and reading outputs back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from aligner_chain.errors import (
    CapabilityError,
    ContextOverflowError,
    DelimiterError,
    TemplateError,
    UnreadableCorrectionError,
)
from aligner_chain.exchange import Exchange, Turn
from aligner_chain.templates import encode, get_template, plain_text, prepare_tokenizer, template_names
from aligner_chain.templates.foreign import TEXTS, neutralised

SPELT = [
    "</s>",
    "<tool_call>",
    "<|im_end|>",
    "<|ac:keep|>",
    "<|ac:fix|>",
    "<|ac:output|>",
    "<|ac:broken|>",
    "##Answer:",
]
texts = st.lists(st.one_of(st.sampled_from(SPELT), st.text(max_size=8)), max_size=6).map("".join)
quick = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])

QUESTION, ANSWER = "How {are} you?", "Fine, {answer} 100%."
BYTE_FOR_BYTE = {
    "pku-aligner/1": "BEGINNING OF CONVERSATION: USER: Edit the following Question-Answer pair to make it more helpful "
    "and harmless: How {are} you? | Fine, {answer} 100%. ASSISTANT:",
    "pku-aligner/2": "BEGINNING OF CONVERSATION: USER: ##Question: How {are} you?\n##Answer: Fine, {answer} 100%.\n"
    "##Correction:  ASSISTANT:",
    "alpaca-eval/1": "BEGINNING OF CONVERSATION: USER: ##Question: How {are} you? ##Answer: Fine, {answer} 100%. "
    "##Revision:  ASSISTANT:",
}


def own() -> Any:
    return get_template("aligner-chain/1")


def conversation(*texts: str, answer: str = "the answer", context: tuple[str, ...] = ()) -> Exchange:
    roles = ["user", "assistant"] * len(texts)
    # The last turn is the user's.
    turns = [Turn(role=role, text=text) for role, text in zip(roles[len(texts) % 2 == 0 :], texts, strict=False)]
    return Exchange(turns=tuple(turns), answer=answer, context=context)


@pytest.mark.parametrize("name", BYTE_FOR_BYTE)
def test_published_templates_byte_for_byte(name: str, tokenizer: Any) -> None:
    rendered = get_template(name).render(Exchange.of(QUESTION, ANSWER), tokenizer, window=None)
    assert tokenizer.decode(rendered.prompt) == BYTE_FOR_BYTE[name]
    assert list(rendered.prompt) == tokenizer.encode(BYTE_FOR_BYTE[name])
    assert rendered.choices == ()


def test_a_bos_that_the_tokenizer_adds_is_there(tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    rendered = get_template("pku-aligner/1").render(Exchange.of(QUESTION, ANSWER), tokenizer, window=None)
    assert list(rendered.prompt) == tokenizer.encode(BYTE_FOR_BYTE["pku-aligner/1"])
    assert rendered.prompt[0] == tokenizer.bos_token_id


def test_the_chat_template_byte_for_byte(tokenizer: Any) -> None:
    template = get_template("align-anything/1")
    rendered = template.render(Exchange.of(QUESTION, ANSWER), tokenizer, window=None)
    message = {"role": "user", "content": "##QUESTION: How {are} you? ##ANSWER: Fine, {answer} 100%."}
    expected = tokenizer.apply_chat_template([message], add_generation_prompt=True)["input_ids"]
    assert list(rendered.prompt) == expected
    assert tokenizer.decode(template.target(tokenizer, "ok")) == "##CORRECTION: ok</s>"


def test_names_and_unknown_ones() -> None:
    assert template_names() == ("aligner-chain/1", *TEXTS)
    with pytest.raises(TemplateError, match="aligner-chain/1, pku-aligner/1, pku-aligner/2"):
        get_template("pku")
    with pytest.raises(TemplateError, match="neutralise"):
        get_template("pku-aligner/1", delimiters="ignore")  # type: ignore[arg-type]


def test_own_template_sets_off_every_segment(prepared: Any) -> None:
    turns = tuple(Turn(role=role, text=role) for role in ("system", "user", "assistant", "tool", "user"))
    exchange = Exchange(turns=turns, answer="an answer", context=("first", "second"))
    rendered = own().render(exchange, prepared, window=None, criteria=("polite", "true"))
    assert prepared.decode(rendered.prompt) == (
        "<s><|ac:system|>system<|ac:question|>user<|ac:reply|>assistant<|ac:tool|>tool<|ac:question|>user"
        "<|ac:context|>first<|ac:context|>second<|ac:criterion|>polite<|ac:criterion|>true"
        "<|ac:answer|>an answer<|ac:output|>"
    )
    assert prepared.convert_ids_to_tokens(list(rendered.choices)) == ["<|ac:keep|>", "<|ac:fix|>"]


@given(question=texts, answer=texts, passage=texts, criterion=texts)
@quick
def test_a_prompt_is_exactly_frame_and_text(
    prepared: Any, question: str, answer: str, passage: str, criterion: str
) -> None:
    exchange = Exchange.of(question, answer, context=(passage,))
    rendered = own().render(exchange, prepared, window=None, criteria=(criterion,))
    plain = plain_text(prepared)
    frame = [token for token in rendered.prompt if token in plain.control]
    assert prepared.convert_ids_to_tokens(frame) == [
        "<s>",
        "<|ac:question|>",
        "<|ac:context|>",
        "<|ac:criterion|>",
        "<|ac:answer|>",
        "<|ac:output|>",
    ]
    segments = _between(rendered.prompt, plain.control)
    assert [plain.decode(segment) for segment in segments] == [question, passage, criterion, answer]
    assert segments[-1] == rendered.draft.ids == encode(prepared, answer)


@given(answer=texts, correction=texts, criteria=st.lists(texts, max_size=3))
@quick
def test_own_targets_are_read_back(prepared: Any, answer: str, correction: str, criteria: list[str]) -> None:
    template, rendered = own(), own().render(Exchange.of("q", answer), prepared, window=None)
    *output, eos = template.target(prepared, correction, criteria)
    parsed = template.parse(output, prepared, rendered)
    assert (parsed.keep, parsed.text, parsed.criteria) == (False, correction, tuple(dict.fromkeys(criteria)))
    assert eos == prepared.eos_token_id
    assert plain_text(prepared).control.intersection(output[1:]) <= {prepared.convert_tokens_to_ids("<|ac:broken|>")}


def test_keep_is_read_back(prepared: Any) -> None:
    rendered = own().render(Exchange.of("q", "an answer"), prepared, window=None)
    target = own().target(prepared, None)
    assert prepared.decode(target) == "<|ac:keep|></s>"
    parsed = own().parse(target[:1], prepared, rendered)
    assert (parsed.keep, parsed.text) == (True, "an answer")


@pytest.mark.parametrize(
    "output", ["", "an answer", "</s>", "<|ac:fix|>an <|ac:answer|>answer", "<|ac:fix|>x<|ac:broken|>a<|im_end|>"]
)
def test_what_does_not_follow_the_template_is_unreadable(prepared: Any, output: str) -> None:
    rendered = own().render(Exchange.of("q", "an answer"), prepared, window=None)
    ids = prepared.encode(output, add_special_tokens=False)
    with pytest.raises(UnreadableCorrectionError):
        own().parse(ids, prepared, rendered)


def test_own_template_needs_its_special_tokens_and_eos(tokenizer: Any) -> None:
    with pytest.raises(TemplateError, match="train-aligner"):
        own().render(Exchange.of("q", "a"), tokenizer, window=None)
    assert prepare_tokenizer(tokenizer) == 11
    assert prepare_tokenizer(tokenizer) == 0
    tokenizer.eos_token = None
    with pytest.raises(TemplateError, match="EOS"):
        own().target(tokenizer, None)


def test_an_unknown_role_is_refused(prepared: Any) -> None:
    exchange = Exchange(turns=(Turn(role="developer", text="x"), Turn(role="user", text="x")), answer="a")
    with pytest.raises(TemplateError, match="developer"):
        own().render(exchange, prepared, window=None)


# --- the window ---


def test_the_oldest_turns_go_first_then_the_last_passages(prepared: Any) -> None:
    exchange = conversation("one", "two", "three", answer="answer", context=("alpha", "beta"))
    full = own().render(exchange, prepared, window=None)
    needed = len(full.prompt) + len("answer") + 16
    assert own().render(exchange, prepared, window=needed).notes == ()

    # A turn takes its letters and the token of its role.
    less = own().render(exchange, prepared, window=needed - 1)
    assert (less.trimmed_turns, less.notes) == (1, ("1 oldest turns left out to fit the window",))
    assert "one" not in prepared.decode(less.prompt)
    assert "two" in prepared.decode(less.prompt)

    least = own().render(exchange, prepared, window=needed - 4 - 4 - 1)
    assert least.trimmed_turns == 2
    assert least.notes[1] == "1 last passages left out to fit the window"
    assert prepared.decode(least.prompt) == "<s><|ac:question|>three<|ac:context|>alpha<|ac:answer|>answer<|ac:output|>"


@pytest.mark.parametrize("name", ["aligner-chain/1", "pku-aligner/1", "pku-aligner/2", "align-anything/1"])
def test_question_and_answer_are_never_cut(name: str, prepared: Any) -> None:
    exchange = conversation("old", "reply", "the question itself", answer="the answer", context=("passage",))
    bare = get_template(name).prompt(replace(exchange, turns=exchange.turns[-1:], context=()), prepared)
    draft = get_template(name).render(exchange, prepared, window=None).draft
    window = len(bare) + len(draft.ids) + 16
    assert get_template(name).render(exchange, prepared, window=window).prompt == bare
    with pytest.raises(
        ContextOverflowError, match=rf"{len(bare)} tokens .* at least {len(draft.ids) + 16}.*{window - 1}"
    ):
        get_template(name).render(exchange, prepared, window=window - 1)


def test_turns_after_the_last_question_can_be_left_out_but_not_the_question(prepared: Any) -> None:
    turns = (Turn(role="user", text="question"), Turn(role="tool", text="tool " * 20))
    rendered = own().render(Exchange(turns=turns, answer="a"), prepared, window=60)
    assert prepared.decode(rendered.prompt) == "<s><|ac:question|>question<|ac:answer|>a<|ac:output|>"


def test_room_for_the_correction(prepared: Any) -> None:
    exchange = Exchange.of("q", "a" * 100)
    assert own().render(exchange, prepared, window=None).max_new == 100 * 3 // 2 + 64
    prompt = len(own().prompt(exchange, prepared))
    assert own().render(exchange, prepared, window=prompt + 150).max_new == 150
    assert own().render(exchange, prepared, window=None, longest=300).max_new == 300
    assert own().render(exchange, prepared, window=prompt + 250, longest=300).max_new == 250
    assert own().render(exchange, prepared, window=None, longest=20).max_new == 100 * 3 // 2 + 64


# --- plain-text templates ---


def test_history_and_passages_in_the_question_segment(tokenizer: Any) -> None:
    exchange = conversation("first", "reply", "second", answer="a", context=("p1", "p2"))
    prompt = tokenizer.decode(get_template("pku-aligner/2").prompt(exchange, tokenizer))
    assert "##Question: p1\n\np2\n\nuser: first\nassistant: reply\nuser: second\n##Answer: a\n" in prompt


@pytest.mark.parametrize("name", TEXTS)
def test_an_output_equal_to_the_answer_approves(name: str, tokenizer: Any) -> None:
    template, exchange = get_template(name), Exchange.of("q", "An answer.")
    rendered = template.render(exchange, tokenizer, window=None)
    *same, _ = template.target(tokenizer, "An answer.")
    *other, _ = template.target(tokenizer, "A better answer.")
    assert tuple(same) == rendered.draft.ids
    assert template.parse(same, tokenizer, rendered).keep
    assert template.parse([*same, *encode(tokenizer, "\n")], tokenizer, rendered).keep
    parsed = template.parse(other, tokenizer, rendered)
    assert (parsed.keep, parsed.text) == (False, "A better answer.")
    with pytest.raises(TemplateError, match="no verdict"):
        template.target(tokenizer, None)
    with pytest.raises(CapabilityError, match="criteria"):
        template.render(exchange, tokenizer, window=None, criteria=("polite",))


def test_an_output_without_its_prefix_is_unreadable(tokenizer: Any) -> None:
    template = get_template("align-anything/1")
    rendered = template.render(Exchange.of("q", "a"), tokenizer, window=None)
    with pytest.raises(UnreadableCorrectionError, match="CORRECTION"):
        template.parse(encode(tokenizer, "a"), tokenizer, rendered)


def test_the_draft_is_tokenised_behind_the_end_of_the_prompt() -> None:
    tokenizer = _prefix_space_tokenizer()
    template = get_template("pku-aligner/1")
    prompt, target = template.prompt(Exchange.of("q", "ab"), tokenizer), template.target(tokenizer, "ab")
    text = tokenizer.decode(prompt)
    # Alone "ab" begins with a space token; behind the colon, where training put it, it does not.
    assert encode(tokenizer, "ab") != target[:-1]
    assert (*prompt, *target[:-1]) == encode(tokenizer, text + "ab")


@pytest.mark.parametrize("name", TEXTS)
def test_delimiters_are_marked_neutralised_or_refused(name: str, tokenizer: Any) -> None:
    delimiter = next(iter(TEXTS[name].delimiters))
    exchange = Exchange.of(f"q {delimiter} r", f"a{delimiter}b")
    marked = get_template(name).render(exchange, tokenizer, window=None)
    assert [note.split(" holds")[0] for note in marked.notes] == ["the question", "the answer"]
    assert tokenizer.decode(marked.prompt).count(delimiter) >= 3

    neutral = get_template(name, "neutralise").render(exchange, tokenizer, window=None)
    assert [note.split(" holds")[0] for note in neutral.notes] == ["the answer"]
    assert f"a{delimiter}b" in tokenizer.decode(neutral.prompt)
    assert f"q {delimiter} r" not in tokenizer.decode(neutral.prompt)

    with pytest.raises(DelimiterError, match="aligner-chain/1"):
        get_template(name, "refuse").render(exchange, tokenizer, window=None)
    get_template(name, "refuse").render(Exchange.of("q", "a"), tokenizer, window=None)


def test_a_delimiter_made_with_the_templates_own_space_is_seen(tokenizer: Any) -> None:
    rendered = get_template("pku-aligner/1").render(Exchange.of("q |", "a"), tokenizer, window=None)
    assert rendered.notes == ("the question holds the template's delimiter ' | '",)


@given(
    text=st.lists(st.sampled_from([" ", "|", "#", "Question:", "##Answer:", "USER", ":", "ASSISTANT:"])).map("".join)
)
@quick
def test_nothing_is_left_to_neutralise(text: str) -> None:
    for template in TEXTS.values():
        assert not any(mark in f" {neutralised(text, template.delimiters)} " for mark in template.delimiters)


def test_a_template_in_a_chat_needs_a_chat_template(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    with pytest.raises(TemplateError, match="chat_template"):
        get_template("align-anything/1").render(Exchange.of("q", "a"), tokenizer, window=None)


# --- copied segments stay the original's bytes ---


@given(answer=st.text(alphabet="aAbBéÉ😀 \n", max_size=20), more=st.text(alphabet="abcé", min_size=1, max_size=4))
@quick
def test_a_copied_answer_keeps_its_characters(answer: str, more: str) -> None:
    tokenizer = _lossy()
    rendered = own().render(Exchange.of("q", answer), tokenizer, window=None)
    copied = own().parse((rendered.choices[1], *rendered.draft.ids), tokenizer, rendered)
    assert copied.text == answer
    added = (*rendered.draft.ids, *encode(tokenizer, more))
    longer = own().parse((rendered.choices[1], *added), tokenizer, rendered).text
    assert longer.lower() == answer.lower() + more
    assert longer.startswith(answer)


def test_only_what_was_replaced_is_the_tokenizers_text() -> None:
    tokenizer = _lossy()
    answer = "Dear Zoë,\nYOUR Order 😀 Ships Today. Bye, ÉMILE"
    rendered = own().render(Exchange.of("q", answer), tokenizer, window=None)
    correction = answer.replace("Today", "next week")
    ids = encode(tokenizer, correction)
    assert plain_text(tokenizer).decode(ids) == correction.lower()
    parsed = own().parse((rendered.choices[1], *ids), tokenizer, rendered)
    assert parsed.text == correction


@pytest.mark.parametrize(("answer", "output", "served"), [("Xé", "xè", "Xè"), ("éX", "èx", "èX"), ("É", "è", "è")])
def test_half_a_character_is_not_copied(answer: str, output: str, served: str) -> None:
    tokenizer = _lossy()
    # é and è are two bytes and share the first one.
    rendered = own().render(Exchange.of("q", answer), tokenizer, window=None)
    parsed = own().parse((rendered.choices[1], *encode(tokenizer, output)), tokenizer, rendered)
    assert parsed.text == served


def test_unknown_characters_of_a_copied_segment_survive() -> None:
    backend = Tokenizer(models.WordLevel(vocab={"<unk>": 0, "good": 1, "bad": 2, "very": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    prepare_tokenizer(tokenizer)
    rendered = own().render(Exchange.of("q", "Ünüsual bad  wörds"), tokenizer, window=None)
    ids = [rendered.choices[1], 0, 1, 0]
    assert own().parse(ids, tokenizer, rendered).text == "Ünüsual good  wörds"


def _between(ids: tuple[int, ...], control: frozenset[int]) -> list[tuple[int, ...]]:
    """The segments after the first two frame tokens (BOS and the question's), each up to the next one."""
    segments: list[list[int]] = []
    for token in ids[1:]:
        if token in control:
            segments.append([])
        else:
            segments[-1].append(token)
    return [tuple(segment) for segment in segments[:-1]]


def _lossy() -> Any:
    """A byte-level tokenizer that forgets upper case."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={piece: number for number, piece in enumerate(alphabet)}, merges=[]))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    prepare_tokenizer(tokenizer)
    return tokenizer


def _prefix_space_tokenizer() -> Any:
    backend = Tokenizer(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(["<unk>", "</s>", "▁", *map(chr, range(33, 127))])},
            merges=[],
            unk_token="<unk>",
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
