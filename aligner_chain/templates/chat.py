"""A conversation under the tokenizer's own chat template."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aligner_chain.engines.base import Request, Sampling
from aligner_chain.errors import TemplateError
from aligner_chain.exchange import Turn
from aligner_chain.templates.plain import PlainText, plain_text, unused_character

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

_ROLES = frozenset({"system", "user", "assistant", "tool"})


def chat_prompt(tokenizer: Tokenizer, turns: Sequence[Turn], *, answered: bool = False) -> tuple[int, ...]:
    """The ids of a conversation, up to where the model answers; with `answered`, of one that ends with the answer.

    For texts that spell no control token these are the ids of `apply_chat_template(..., add_generation_prompt=True)`,
    False where it is answered;
    a text that does spell one is read as the letters it consists of. Whitespace-only tokens are not control tokens.

    Raises `TemplateError` for a tokenizer without a chat template, an unknown role, and a conversation that the
    template refuses.
    """
    plain = plain_text(tokenizer)
    mark = unused_character([*(turn.text for turn in turns), str(tokenizer.chat_template)])
    broken = [Turn(role=_known_role(turn), text=plain.break_up(turn.text, mark)) for turn in turns]
    ids = plain.encode_marked(_rendered(tokenizer, broken, answered), mark)
    # A text could also complete a control token that the template's own letters beside it begin. Texts fenced off
    # from the template cannot, so where that makes a difference the fenced conversation is the safe one.
    fenced = plain.encode_marked(_rendered(tokenizer, [_fenced(turn, mark) for turn in broken], answered), mark)
    return ids if _control(ids, plain) == _control(fenced, plain) else fenced


def chat_request(tokenizer: Tokenizer, turns: Sequence[Turn], *, sampling: Sampling, max_new: int) -> Request:
    """What asks a chat model for its answer. The key is made of the prompt, so the noise depends on it and the seed."""
    prompt = chat_prompt(tokenizer, turns)
    key = hashlib.sha256(" ".join(map(str, prompt)).encode()).hexdigest()
    return Request(key=key, prompt=prompt, max_new=max_new, sampling=sampling)


def _rendered(tokenizer: Tokenizer, turns: Sequence[Turn], answered: bool) -> str:
    from jinja2 import TemplateError as JinjaError

    if not tokenizer.chat_template:
        raise TemplateError(
            "The tokenizer has no chat template. Ways out: use a model that was trained for chat, or set "
            "tokenizer.chat_template to the template it was trained with."
        )
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=not answered))
    except (JinjaError, ValueError) as error:
        raise TemplateError(f"The chat template of this model refuses the conversation: {error}") from error


def _known_role(turn: Turn) -> str:
    # Some templates build a control token out of the role, so it must not be free text.
    if turn.role not in _ROLES:
        raise TemplateError(f"A turn has the role {turn.role!r}; known are {', '.join(sorted(_ROLES))}.")
    return turn.role


def _fenced(turn: Turn, mark: str) -> Turn:
    """The turn with a mark at both ends of its text, inside the whitespace that a template may strip."""
    core = turn.text.strip()
    before, _, after = turn.text.partition(core) if core else (turn.text, "", "")
    return Turn(role=turn.role, text=f"{before}{mark}{core}{mark}{after}")


def _control(ids: Sequence[int], plain: PlainText) -> list[int]:
    return [token for token in ids if token in plain.control]
