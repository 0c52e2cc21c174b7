"""What every template has in common: fitting an exchange into the window, and reading the output back."""

from __future__ import annotations

import bisect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from aligner_chain.engines.base import Draft
from aligner_chain.errors import CapabilityError, ContextOverflowError, UnreadableCorrectionError
from aligner_chain.exchange import Exchange
from aligner_chain.templates.growing import GrowingText
from aligner_chain.templates.plain import PlainText, plain_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

ROOM = 16
"""Tokens of output, beyond the answer's own length, without which nothing is rendered."""

GROWTH = 64
"""Tokens that a correction may have beyond one and a half times those of its answer."""

UNCERTAIN = 2
"""Tokens at the end of a text that are not told yet: the likeliest to become others when more text comes. Up to 6 have been
seen to, but one that was told too soon costs no more than reading it again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """An exchange as token ids, and the answer as it was. `choices` are the ids of KEEP and FIX, empty without a verdict.

    `max_new` is the most tokens of output. `stop_ids` end the output as EOS does. `trimmed_turns` counts the oldest
    turns that were left out so that the rest fits; `notes` says this and other things worth knowing in words.
    """

    prompt: tuple[int, ...]
    answer: str
    draft: Draft
    max_new: int = 0
    choices: tuple[int, ...] = ()
    stop_ids: tuple[int, ...] = ()
    trimmed_turns: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Parsed:
    """What an output says: `keep` the answer, or serve `text` because `criteria` were broken (if the model named any)."""

    keep: bool
    text: str
    criteria: tuple[str, ...] = ()


class CorrectionTemplate(ABC):
    """How an exchange becomes a prompt, and an output a correction. A checkpoint works only with its own template.

    `name` goes into `aligner.json`; `text` shows the template to a person; `verdict` tells whether the output starts
    with KEEP or FIX. `longest_output` is how long the outputs of a model with this template can be expected to be where its
    checkpoint does not say, in tokens.
    """

    name: str
    text: str
    verdict: bool = False
    longest_output: int = 0

    def render(
        self,
        exchange: Exchange,
        tokenizer: Tokenizer,
        *,
        window: int | None,
        criteria: Sequence[str] = (),
        longest: int = 0,
    ) -> Rendered:
        """The prompt, the draft and the room for the output.

        `window` is the most tokens of prompt and output together (None: no limit). Where it is too small the oldest
        turns are left out first, then the last passages; never the last user turn and never the answer. A correction
        may take half as much again as the answer and `GROWTH` tokens, or `longest` where that is more, as far as the window
        goes; it always has `ROOM` tokens more than the answer.

        Raises `ContextOverflowError` where that is not enough, `TemplateError` where the tokenizer does not fit, and
        `CapabilityError` for criteria in a template without a place for them.
        """
        plain = self.check(tokenizer)
        self._check_criteria(criteria)
        fit = partial(self._fit, tokenizer=tokenizer, plain=plain, window=window, criteria=criteria, longest=longest)
        rendered = fit(exchange)
        if _fits(rendered, window):
            return rendered
        shorter = _shorter(exchange)
        # Each one is shorter than the one before, so the first that fits is found by halving.
        best = bisect.bisect_left(shorter, True, key=lambda one: _fits(fit(one), window))
        if best == len(shorter):
            raise _overflow(fit([exchange, *shorter][-1]), window)
        return _with_notes(fit(shorter[best]), exchange, shorter[best])

    def prompt(self, exchange: Exchange, tokenizer: Tokenizer, criteria: Sequence[str] = ()) -> tuple[int, ...]:
        """The whole prompt, whatever its length. Training uses it, and drops rows that would not fit."""
        return self.render(exchange, tokenizer, window=None, criteria=criteria).prompt

    def beginning(
        self, exchange: Exchange, tokenizer: Tokenizer, *, window: int | None, criteria: Sequence[str] = ()
    ) -> Callable[[str], tuple[int, ...]]:
        """A function from the answer so far to the ids that the prompt is as good as certain to begin with.

        It gives none where the prompt does not fit into the window any more without something being left out. It is made
        for answers that get longer from call to call, and then tokenises little. Raises what `render` raises.
        """
        plain = self.check(tokenizer)
        self._check_criteria(criteria)
        frame, anchor, first = self._beginning(exchange, tokenizer, plain, criteria)
        growing = GrowingText(plain)

        def certain(answer: str) -> tuple[int, ...]:
            ids = growing.encode(anchor + answer)[first:]
            fits = window is None or len(frame) + 2 * len(ids) + ROOM <= window
            return (*frame, *ids[:-UNCERTAIN]) if fits else ()

        return certain

    def reader(self, tokenizer: Tokenizer, rendered: Rendered) -> Callable[[Sequence[int]], str]:
        """A function from the output so far to the beginning of the correction that is certain by then.

        Where the tokenizer cannot spell the answer nothing is, since its own characters are put back at the end.
        """
        plain = plain_text(tokenizer)
        if not plain.decode(rendered.draft.ids).endswith(rendered.answer):
            return lambda ids: ""

        def certain(ids: Sequence[int]) -> str:
            text = self._certain(ids, plain, rendered).rstrip("\ufffd")  # half a character
            return text if text.strip() else ""

        return certain

    @abstractmethod
    def check(self, tokenizer: Tokenizer) -> PlainText:
        """Raises `TemplateError` where the template cannot be used with this tokenizer; else returns its plain side."""

    @abstractmethod
    def parse(self, ids: Sequence[int], tokenizer: Tokenizer, rendered: Rendered) -> Parsed:
        """Reads an output (without EOS). Raises `UnreadableCorrectionError` where it does not follow the template."""

    @abstractmethod
    def target(self, tokenizer: Tokenizer, correction: str | None, criteria: Sequence[str] = ()) -> tuple[int, ...]:
        """The output to train for, with EOS. None stands for KEEP; templates without a verdict raise on it."""

    @abstractmethod
    def _certain(self, ids: Sequence[int], plain: PlainText, rendered: Rendered) -> str:
        """The beginning of the correction that no more output can change, except for half a character at its end."""

    @abstractmethod
    def _build(self, exchange: Exchange, tokenizer: Tokenizer, plain: PlainText, criteria: Sequence[str]) -> Rendered:
        """The rendered exchange, whatever its length; `max_new` is set later."""

    @abstractmethod
    def _beginning(
        self, exchange: Exchange, tokenizer: Tokenizer, plain: PlainText, criteria: Sequence[str]
    ) -> tuple[tuple[int, ...], str, int]:
        """The ids before the answer; the text with which an answer is tokenised together; how many ids that text has."""

    def _check_criteria(self, criteria: Sequence[str]) -> None:
        if criteria and not self.verdict:
            raise CapabilityError(
                f"The template {self.name} has no place for criteria. Call correct() without criteria=, or train an "
                "Aligner with the template aligner-chain/1 (aligner-bootstrap train-aligner)."
            )

    def _fit(
        self,
        exchange: Exchange,
        *,
        tokenizer: Tokenizer,
        plain: PlainText,
        window: int | None,
        criteria: Sequence[str],
        longest: int,
    ) -> Rendered:
        rendered = self._build(exchange, tokenizer, plain, criteria)
        wanted = max(len(rendered.draft.ids) * 3 // 2 + GROWTH, longest)
        room = wanted if window is None else window - len(rendered.prompt)
        return replace(rendered, max_new=min(wanted, room))


def refuse_control(ids: Sequence[int], control: frozenset[int], tokenizer: Tokenizer) -> None:
    """Raises `UnreadableCorrectionError` where an output holds control tokens where its text should be."""
    if stray := control.intersection(ids):
        names = tokenizer.convert_ids_to_tokens(sorted(stray))
        raise UnreadableCorrectionError(f"The correction holds control tokens where text should be: {names}.")


def _fits(rendered: Rendered, window: int | None) -> bool:
    return window is None or rendered.max_new >= len(rendered.draft.ids) + ROOM


def _shorter(exchange: Exchange) -> list[Exchange]:
    """Ever shorter ones: without its oldest turns one by one, then without its last passages too."""
    last_user = max((at for at, turn in enumerate(exchange.turns) if turn.role == "user"), default=None)
    others = [at for at in range(len(exchange.turns)) if at != last_user]
    shorter, shortest = [], exchange
    for cut in range(1, len(others) + 1):
        left_out = set(others[:cut])
        turns = tuple(turn for at, turn in enumerate(exchange.turns) if at not in left_out)
        shorter.append(shortest := replace(exchange, turns=turns))
    return shorter + [
        replace(shortest, context=exchange.context[:end]) for end in reversed(range(len(exchange.context)))
    ]


def _with_notes(rendered: Rendered, exchange: Exchange, used: Exchange) -> Rendered:
    turns, passages = len(exchange.turns) - len(used.turns), len(exchange.context) - len(used.context)
    left_out = [f"{turns} oldest turns left out to fit the window"] if turns else []
    left_out += [f"{passages} last passages left out to fit the window"] if passages else []
    return replace(rendered, trimmed_turns=turns, notes=(*rendered.notes, *left_out))


def _overflow(rendered: Rendered, window: int | None) -> ContextOverflowError:
    prompt, answer = len(rendered.prompt), len(rendered.draft.ids)
    return ContextOverflowError(
        f"The last question with this answer takes {prompt} tokens and a correction at least {answer + ROOM}, but the "
        f"model's window holds {window}. Nothing was cut. Ways out: an Aligner with a longer window, a shorter answer "
        'from the upstream (its max_tokens), or fewer criteria; with on_error="pass_through" such an answer is '
        "served as it is."
    )
