"""No text becomes a token that steers the model, whatever the tokenizer."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from aligner_chain.errors import TemplateError
from aligner_chain.templates import encode, plain_text, prepare_tokenizer

SPELT = ["</s>", "<s>", "<unk>", "<tool_call>", "<|im_end|>", "<|ac:keep|>", "<|ac:fix|>", "<|ac:output|>", "<pad>"]
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
texts = st.lists(st.one_of(st.sampled_from(SPELT), st.text(max_size=8)), max_size=8).map("".join)
quick = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _wrapped(backend: Tokenizer) -> Any:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **NAMES)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_end|>", "<pad>"]})
    tokenizer.add_tokens(["<tool_call>"])
    prepare_tokenizer(tokenizer)
    return tokenizer


def byte_level() -> Any:
    """As GPT-2, Qwen and Llama 3: bytes, here with one merge, and control tokens outside the model's vocabulary."""
    vocab = {piece: number for number, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocab | {"th": len(vocab)}, merges=[("t", "h")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _wrapped(backend)


def _byte_pieces() -> list[str]:
    return [f"<0x{byte:02X}>" for byte in range(256)]


def sentencepiece_bpe() -> Any:
    """As Llama 2: a space before every text, byte fallback, control tokens inside the model's own vocabulary."""
    pieces = ["<unk>", "<s>", "</s>", *_byte_pieces(), "▁", *"abcdefghijklmnopqrstuvwxyz<>/|_:"]
    backend = Tokenizer(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(pieces)},
            merges=[],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _wrapped(backend)


def unigram() -> Any:
    """As T5 and XLNet: control tokens are pieces of the model, which the text `</s>` would match."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -2.0), *((c, -3.0) for c in "abcdefghij<>/s|_:")]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return _wrapped(backend)


def words() -> Any:
    """Lossy: lower case, whole words, everything else unknown."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "hello": 3, "there": 4, "the": 5, "é": 6, ".": 7, "<": 8, "/": 9, ">": 10}
    backend = Tokenizer(models.WordLevel(vocab=vocab, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return _wrapped(backend)


KINDS = [byte_level, sentencepiece_bpe, unigram, words]


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts)
@quick
def test_no_text_becomes_a_control_token(kind: Callable[[], Any], text: str) -> None:
    tokenizer = _once(kind)
    assert plain_text(tokenizer).control.isdisjoint(encode(tokenizer, text))


@pytest.mark.parametrize("spelt", SPELT)
@pytest.mark.parametrize("kind", KINDS)
def test_the_tokenizer_alone_would_make_control_tokens_of_these(kind: Callable[[], Any], spelt: str) -> None:
    tokenizer = _once(kind)
    control = plain_text(tokenizer).control | {tokenizer.unk_token_id}
    assert control.intersection(tokenizer.encode(spelt, add_special_tokens=False))


@pytest.mark.parametrize("kind", [byte_level, sentencepiece_bpe])
@given(text=texts)
@quick
def test_lossless_tokenizers_give_the_text_back(kind: Callable[[], Any], text: str) -> None:
    tokenizer = _once(kind)
    # U+2581 is how SentencePiece itself writes a space.
    text = text.replace("▁", "")
    assert plain_text(tokenizer).decode(encode(tokenizer, text)) == text


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(alphabet="abcdefghij theo.é", max_size=20))
@quick
def test_harmless_text_is_encoded_as_the_tokenizer_does(kind: Callable[[], Any], text: str) -> None:
    tokenizer = _once(kind)
    assert list(encode(tokenizer, text)) == tokenizer.encode(text, add_special_tokens=False)


@given(text=texts)
@quick
def test_spans_cover_the_text_in_order(text: str) -> None:
    plain = plain_text(_once(byte_level))
    ids, spans = plain.encode_with_spans(text)
    assert len(ids) == len(spans)
    assert "".join(text[start:end] for start, end in sorted(set(spans))) == text


def test_split_special_tokens_would_not_have_been_enough() -> None:
    tokenizer = byte_level()
    added = tokenizer.convert_tokens_to_ids("<tool_call>")
    assert added in tokenizer.encode("<tool_call>", add_special_tokens=False, split_special_tokens=True)
    assert added not in encode(tokenizer, "<tool_call>")


def test_tokens_added_later_are_seen() -> None:
    tokenizer = byte_level()
    before = encode(tokenizer, "<new>")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<new>"]})
    assert tokenizer.encode("<new>", add_special_tokens=False) == [tokenizer.convert_tokens_to_ids("<new>")]
    assert encode(tokenizer, "<new>") == before
    assert tokenizer.convert_tokens_to_ids("<new>") in plain_text(tokenizer).control


def test_a_piece_of_the_vocabulary_that_was_made_special_is_no_longer_spelt() -> None:
    tokenizer = byte_level()
    assert len(encode(tokenizer, "th")) == 1
    tokenizer.add_special_tokens({"extra_special_tokens": ["th"]})
    assert len(encode(tokenizer, "th")) == 2


def test_whitespace_tokens_stay_tokens() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens(["    "])
    assert encode(tokenizer, "    ") == (tokenizer.convert_tokens_to_ids("    "),)


def test_the_space_a_tokenizer_puts_before_a_text_is_taken_off() -> None:
    backend = Tokenizer(models.BPE(vocab={"Ġ": 0, "a": 1, "b": 2, "Ġa": 3}, merges=[("Ġ", "a")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    plain = plain_text(_wrapped(backend))
    assert plain.encode("ab") == (3, 2)
    assert plain.decode((3, 2)) == "ab"


def test_a_tokenizer_is_not_kept_alive() -> None:
    tokenizer = byte_level()
    encode(tokenizer, "x")
    reference = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert reference() is None


def test_a_tokenizer_without_backend_is_refused() -> None:
    class Slow:
        added_tokens_decoder = ()

    with pytest.raises(TemplateError, match=r"tokenizer\.json"):
        encode(Slow(), "x")  # type: ignore[arg-type]


_made: dict[Callable[[], Any], Any] = {}


def _once(kind: Callable[[], Any]) -> Any:
    if kind not in _made:
        _made[kind] = kind()
    return _made[kind]
