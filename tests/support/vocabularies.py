"""Fast tokenizers of several families, each with control tokens that a text might spell. All are ready for every template."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from aligner_chain.templates import prepare_tokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789<>/|_:#.,?![](){}'-"


def byte_level() -> Any:
    """As GPT-2, Qwen and Llama 3, without merges: every byte is a token, so it is lossless."""
    return _wrapped(_bytes())


def text_like() -> Any:
    """Byte-level with added tokens that look like text, one of which takes the spaces beside it, one only whole words."""
    tokenizer = byte_level()
    names = ["Answer", "keep", "days", "##Answer:", "USER:", " | ", "ab", "ba"]
    tokenizer.add_tokens([*names, AddedToken("HACKED", lstrip=True, rstrip=True), AddedToken("the", single_word=True)])
    return tokenizer


def unigram() -> Any:
    """As T5 and many Japanese models: control tokens are pieces of the vocabulary, and NFKC makes letters of look-alikes."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in _LETTERS)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return _wrapped(backend, unk_token="<unk>")


def word_pieces() -> Any:
    """As BERT, but cut at spaces only: lower case, and its normaliser drops what cannot be seen."""
    lower = sorted(set(_LETTERS.lower()))
    pieces = ["[UNK]", "<s>", "</s>", *lower, *(f"##{letter}" for letter in lower), "answer", "keep"]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece()
    return _wrapped(backend, unk_token="[UNK]")


def fallback() -> Any:
    """As Llama 2: a space before every text, bytes of what is not in the vocabulary, control tokens inside it."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *_LETTERS]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _wrapped(backend, unk_token="<unk>")


VOCABULARIES = (byte_level, text_like, unigram, word_pieces, fallback)
LOSSLESS = (byte_level, text_like)


def _bytes() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={piece: number for number, piece in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def unprepared(backend: Tokenizer | None = None, **names: str) -> Any:
    """A tokenizer with control tokens, byte-level unless told otherwise, which our own template has not been added to."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend or _bytes(),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=CHAT_TEMPLATE,
        **names,
    )
    tokenizer.add_tokens(["<tool_call>"])
    return tokenizer


def _wrapped(backend: Tokenizer, **names: str) -> Any:
    tokenizer = unprepared(backend, **names)
    prepare_tokenizer(tokenizer)
    return tokenizer
