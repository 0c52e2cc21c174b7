"""Text to token ids and back, where no text can spell a token that steers the model.

A tokenizer turns the text `</s>` or `<tool_call>` into the token of that name. `split_special_tokens=True` of
transformers helps only against tokens marked as special, and it is a switch that all threads share. Here a twin of the
tokenizer is used that does not know such tokens at all.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from aligner_chain.errors import TemplateError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerBase as Tokenizer

Span = tuple[int, int]

_SURROGATE = re.compile("[\ud800-\udfff]")


class PlainText:
    """The plain-text side of one tokenizer; made once per tokenizer by `plain_text`.

    `control` holds the ids that no text may become: all special and added tokens, except runs of whitespace (which
    some tokenizers keep as added tokens) and the token for unknown characters; `special` those of them that a model
    writes as a sign only, never as a word. `added` names all added ones; `unknown` is the token for unknown characters,
    if any; `bos` holds what the tokenizer itself puts before a text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        spec = _backend_spec(tokenizer)
        self.added = {str(token["content"]): int(token["id"]) for token in spec["added_tokens"]}
        self._names = tuple(name for name in self.added if not name.isspace())
        self.control = frozenset(self.added[name] for name in self._names if name != tokenizer.unk_token)
        special = {int(token["id"]) for token in spec["added_tokens"] if token["special"]}
        self.special = self.control & special
        self._spellings = {self.added[name]: name.strip() for name in self._names}
        self.unknown = tokenizer.unk_token_id
        first = tokenizer("")["input_ids"][:1]
        self.bos: tuple[int, ...] = tuple(first) if first == [tokenizer.bos_token_id] else ()
        self._twin = _without_control(spec, set(self._names))
        # Matched before normalisation, a control token is exactly its letters, and a mark inside breaks it.
        exact = [{**token, "normalized": False} for token in spec["added_tokens"]]
        self._full = _backend({**spec, "added_tokens": exact})
        # Some tokenizers (SentencePiece with a prefix space) put a space before every text they encode.
        self._prefix = " " if self._decode(self._twin.encode("a").ids) == " a" else ""

    def encode(self, text: str) -> tuple[int, ...]:
        """The ids of `text`; decoding them gives the text back as far as the tokenizer is lossless."""
        return tuple(self._twin.encode(_encodable(text), add_special_tokens=False).ids)

    def encode_with_spans(self, text: str) -> tuple[tuple[int, ...], tuple[Span, ...]]:
        """The ids of `text` and for each the characters (start, end) of `text` that it stands for."""
        encoding = self._twin.encode(_encodable(text), add_special_tokens=False)
        return tuple(encoding.ids), tuple(encoding.offsets)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without the space that the tokenizer itself puts before a text."""
        return self._decode(ids).removeprefix(self._prefix)

    def break_up(self, text: str, mark: str) -> str:
        """`text` with `mark` inside everything that spells an added token, so that it no longer does.

        A name of one character cannot be broken up; such tokens are left to the chat template's author.
        """
        names = sorted((name for name in self._names if len(name) > 1), key=len, reverse=True)
        if not names:
            return text
        # A lookahead finds overlapping names too: with "ab" and "bc" both places of "abc" are broken up.
        starts = "|".join(map(re.escape, names))
        return re.sub(rf"(?=(?:{starts}))(.)", rf"\g<1>{mark}", text, flags=re.DOTALL)

    def encode_marked(self, text: str, mark: str) -> tuple[int, ...]:
        """The ids of a rendered chat, whose added tokens count as such, without the `mark`s that break up others."""
        encoding = self._full.encode(_encodable(text), add_special_tokens=False)
        kept = list[int]()
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            piece = text[start:end]
            if token in self.control and piece.strip() != self._spellings[token]:
                # The tokenizer's normaliser made its name of look-alikes, or took the mark out of it.
                kept += self.encode(piece.replace(mark, ""))
            elif mark not in piece or piece.strip(mark):
                kept.append(token)
        return tuple(kept)

    def pieces(self, ids: Sequence[int]) -> list[str] | None:
        """The text that each id adds (bytes of one character go to its last id); None where they do not add up."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=False)
        try:
            pieces = [stream.step(self._full, token) or "" for token in ids]
        except Exception:  # noqa: BLE001  (tokenizers raises nothing finer where half a character changes what stood before)
            return None
        if pieces:
            pieces[0] = pieces[0].removeprefix(self._prefix)
        return pieces if "".join(pieces) == self.decode(ids) else None

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._full.decode(list(ids), skip_special_tokens=False))


_known: WeakKeyDictionary[Any, tuple[int, PlainText]] = WeakKeyDictionary()
_lock = threading.Lock()


def plain_text(tokenizer: Tokenizer) -> PlainText:
    """The `PlainText` of a tokenizer, made anew when tokens were added since."""
    size = len(tokenizer.added_tokens_decoder)
    with _lock:
        known = _known.get(tokenizer)
        if known is None or known[0] != size:
            known = _known[tokenizer] = (size, PlainText(tokenizer))
    return known[1]


def encode(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Plain text to token ids: never a special or added token, whatever the text holds.

    Raises `TemplateError` for a tokenizer without a `tokenizers` backend.
    """
    return plain_text(tokenizer).encode(text)


def framing_twin(tokenizer: Tokenizer) -> Backend:
    """A new backend that puts a text, or a pair of them, between the tokenizer's own special tokens; no text spells one.

    Truncation and padding are off and may be set on it. Raises `TemplateError` as `encode` does.
    """
    return _without_control(_full_spec(tokenizer), {name for name in plain_text(tokenizer).added if not name.isspace()})


def unused_character(texts: Iterable[str]) -> str:
    """A character of the private-use plane that occurs in none of the texts."""
    used = set().union(*texts)
    return next(chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in used)


def _encodable(text: str) -> str:
    """`text` without halves of a character, which an upstream's broken JSON can hold and no tokenizer takes."""
    return _SURROGATE.sub("\ufffd", text)


def _backend_spec(tokenizer: Tokenizer) -> dict[str, Any]:
    return {**_full_spec(tokenizer), "post_processor": None}


def _full_spec(tokenizer: Tokenizer) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TemplateError(
            f"{type(tokenizer).__name__} has no `tokenizers` backend, without which text cannot be kept apart from "
            "control tokens. Load it with transformers.AutoTokenizer, or save a tokenizer.json beside the model."
        )
    spec: dict[str, Any] = json.loads(backend.to_str())
    return {**spec, "truncation": None, "padding": None}


def _without_control(spec: dict[str, Any], names: set[str]) -> Backend:
    """A tokenizer with the same ids, in which the added tokens `names` have names that nobody can guess.

    Left out instead, they would leave their ids to the added tokens behind them.
    """
    secret = {name: f"\0{secrets.token_hex(16)}" for name in names}
    added = [{**token, "content": secret.get(token["content"], token["content"])} for token in spec["added_tokens"]]
    return _backend({**spec, "added_tokens": added, "model": _renamed(spec["model"], secret)})


def _renamed(model: dict[str, Any], secret: dict[str, str]) -> dict[str, Any]:
    """The tokenizer's model, where control tokens can be pieces of the vocabulary too."""
    changed = dict(model)
    if isinstance(model["vocab"], dict):
        changed["vocab"] = {secret.get(piece, piece): number for piece, number in model["vocab"].items()}
    else:
        changed["vocab"] = [[secret.get(piece, piece), score] for piece, score in model["vocab"]]
    if isinstance(model.get("unk_token"), str):
        changed["unk_token"] = secret.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        changed["merges"] = [pair for pair in pairs if secret.keys().isdisjoint({*pair, "".join(pair)})]
    return changed


def _backend(spec: dict[str, Any]) -> Backend:
    from tokenizers import Tokenizer as Backend

    return Backend.from_str(json.dumps(spec))
