"""The four templates that published Aligners were trained with, byte for byte.

Their delimiters are plain text, so a question or an answer can hold one and fake a boundary: these templates are not
injection-proof. What is done about a delimiter in the data is the option `delimiters`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Literal

from aligner_chain.engines.base import Draft
from aligner_chain.errors import DelimiterError, TemplateError, UnreadableCorrectionError
from aligner_chain.exchange import Exchange, Turn
from aligner_chain.templates.base import CorrectionTemplate, Parsed, Rendered, refuse_control
from aligner_chain.templates.chat import chat_prompt
from aligner_chain.templates.plain import PlainText, plain_text
from aligner_chain.templates.splice import spliced

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

Delimiters = Literal["mark", "neutralise", "refuse"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A template text with {question} and {answer}, and for each delimiter in it a harmless spelling."""

    text: str
    delimiters: Mapping[str, str]
    chat: bool = False
    output: str = ""
    """What the output says before the correction."""


_CONVERSATION = {
    "BEGINNING OF CONVERSATION:": "BEGINNING OF CONVERSATION :",
    "ASSISTANT:": "ASSISTANT :",
    "USER:": "USER :",
}

TEXTS = {
    "pku-aligner/1": Text(
        text="BEGINNING OF CONVERSATION: USER: Edit the following Question-Answer pair to make it more helpful and "
        "harmless: {question} | {answer} ASSISTANT:",
        delimiters={" | ": " ¦ ", **_CONVERSATION},
    ),
    "pku-aligner/2": Text(
        text="BEGINNING OF CONVERSATION: USER: ##Question: {question}\n##Answer: {answer}\n##Correction:  ASSISTANT:",
        delimiters={"##Question:": "## Question:", "##Answer:": "## Answer:", "##Correction:": "## Correction:"}
        | _CONVERSATION,
    ),
    "alpaca-eval/1": Text(
        text="BEGINNING OF CONVERSATION: USER: ##Question: {question} ##Answer: {answer} ##Revision:  ASSISTANT:",
        delimiters={"##Question:": "## Question:", "##Answer:": "## Answer:", "##Revision:": "## Revision:"}
        | _CONVERSATION,
    ),
    "align-anything/1": Text(
        text="##QUESTION: {question} ##ANSWER: {answer}",
        delimiters={"##QUESTION:": "## QUESTION:", "##ANSWER:": "## ANSWER:", "##CORRECTION:": "## CORRECTION:"},
        chat=True,
        output="##CORRECTION: ",
    ),
}


class ForeignTemplate(CorrectionTemplate):
    """A template of one question and one answer, tokenised as a whole, as it was in training.

    Passages stand before the question, each followed by an empty line. Where there is more than the one question, the
    question segment holds the conversation, one turn after the other as `user: ...`, each on its own line. Without a
    verdict, an output that equals the answer (apart from whitespace at its ends) approves it.

    `delimiters` says what happens to a delimiter in the data: "mark" goes on and says so in `Rendered.notes`;
    "neutralise" spells it differently in question and passages (an answer is never changed, so there it is marked);
    "refuse" raises `DelimiterError`.
    """

    # These models rewrite: of Aligner-2B's recorded outputs one in eight has more than half as much again as its answer and
    # 64 tokens, at four characters a token, and one in three hundred more than this.
    longest_output = 1024

    def __init__(self, name: str, delimiters: Delimiters = "mark") -> None:
        self._text = TEXTS[name]
        self._delimiters = delimiters
        self.name = name
        self.text = self._text.text
        # Cut at the places, not formatted: a question may itself hold "{answer}".
        self._before, rest = self.text.split("{question}")
        self._between, self._after = rest.split("{answer}")

    def check(self, tokenizer: Tokenizer) -> PlainText:
        if self._text.chat and not tokenizer.chat_template:
            raise TemplateError(
                f"{self.name} is put into the tokenizer's chat template, and this tokenizer has none. Set "
                "tokenizer.chat_template, or name the template the model was trained with, such as "
                'template="pku-aligner/2".'
            )
        return plain_text(tokenizer)

    def target(self, tokenizer: Tokenizer, correction: str | None, criteria: Sequence[str] = ()) -> tuple[int, ...]:
        self._check_criteria(criteria)
        if correction is None:
            raise TemplateError(
                f"{self.name} has no verdict: train it on the answer itself where nothing is to change."
            )
        if tokenizer.eos_token_id is None:
            raise TemplateError(f"{self.name} needs a tokenizer with an EOS token; set tokenizer.eos_token.")
        return (*self._output(correction, plain_text(tokenizer)).ids, int(tokenizer.eos_token_id))

    def parse(self, ids: Sequence[int], tokenizer: Tokenizer, rendered: Rendered) -> Parsed:
        plain, before = plain_text(tokenizer), self._text.output
        # A name that was added as a word, such as Gemma's <table>, is text: these models learned their answers with it.
        refuse_control(ids, plain.special, tokenizer)
        written = spliced(ids, plain, self._output(rendered.answer, plain), before + rendered.answer)
        if not written.startswith(before.rstrip()):
            raise UnreadableCorrectionError(
                f"The output starts with {written[: len(before)]!r} and not with {before!r}. The model was probably not "
                f"trained for {self.name}: name its own template with template=."
            )
        text = _behind(before, written)
        keep = text.strip() == rendered.answer.strip()
        return Parsed(keep=keep, text=rendered.answer if keep else text)

    def _certain(self, ids: Sequence[int], plain: PlainText, rendered: Rendered) -> str:
        written, before = plain.decode(ids), self._text.output
        # Whitespace at the end waits, because a copy is served with the answer's own.
        readable = written.startswith(before) and plain.special.isdisjoint(ids)
        return _behind(before, written).rstrip() if readable else ""

    def _build(self, exchange: Exchange, tokenizer: Tokenizer, plain: PlainText, criteria: Sequence[str]) -> Rendered:
        question, notes = self._guarded(_question(exchange), exchange.answer)
        text = f"{self._before}{question}{self._between}{exchange.answer}{self._after}"
        prompt = self._prompt(text, tokenizer, plain)
        output, shift = self._output(exchange.answer, plain), len(self._text.output)
        spans = tuple((max(0, start - shift), max(0, end - shift)) for start, end in output.spans)
        return Rendered(prompt=prompt, answer=exchange.answer, draft=Draft(ids=output.ids, spans=spans), notes=notes)

    def _beginning(
        self, exchange: Exchange, tokenizer: Tokenizer, plain: PlainText, criteria: Sequence[str]
    ) -> tuple[tuple[int, ...], str, int]:
        question, _ = self._guarded(_question(exchange), "")
        anchor = self._between.rstrip()
        asked = f"{self._before}{question}{anchor}"
        # What a prompt shares with a longer one leaves out what a chat template puts behind it.
        frame = _shared(*(self._prompt(text, tokenizer, plain) for text in (asked, f"{asked} a")))
        first = len(_shared(*(plain.encode(text) for text in (anchor, f"{anchor} a"))))
        return frame, self._between, first

    def _prompt(self, text: str, tokenizer: Tokenizer, plain: PlainText) -> tuple[int, ...]:
        chat = self._text.chat
        return chat_prompt(tokenizer, [Turn(role="user", text=text)]) if chat else (*plain.bos, *plain.encode(text))

    def _output(self, answer: str, plain: PlainText) -> Draft:
        """The output that gives `answer`, tokenised behind the prompt's end, with spans of the whole output."""
        written = self._text.output + answer
        anchor = "" if self._text.chat else "ASSISTANT:"
        ids, spans = plain.encode_with_spans(anchor + written)
        first = next((at for at, (_, end) in enumerate(spans) if end > len(anchor)), len(ids))
        if first < len(ids) and spans[first][0] < len(anchor):
            # The tokenizer joins the colon with what follows, so the prompt's own end cannot come before it.
            ids, spans = plain.encode_with_spans(written)
            return Draft(ids=ids, spans=spans)
        shifted = tuple((start - len(anchor), end - len(anchor)) for start, end in spans[first:])
        return Draft(ids=ids[first:], spans=shifted)

    def _guarded(self, question: str, answer: str) -> tuple[str, tuple[str, ...]]:
        """The question as it goes into the prompt, and a note for every delimiter that the data holds."""
        if self._delimiters == "neutralise":
            question = neutralised(question, self._text.delimiters)
        places = [("question", question), ("answer", answer)]
        found = [(mark, place) for place, text in places for mark in self._text.delimiters if _holds(text, mark)]
        if found and self._delimiters == "refuse":
            mark, place = found[0]
            raise DelimiterError(
                f"The {place} holds {mark!r}, which is a delimiter of the template {self.name}. Ways out: "
                'get_template(name, delimiters="mark") goes on and says so in the correction, delimiters="neutralise" '
                "spells it differently in the question, and aligner-chain/1 has delimiters that no text can spell."
            )
        return question, tuple(f"the {place} holds the template's delimiter {mark!r}" for mark, place in found)


def neutralised(text: str, delimiters: Mapping[str, str]) -> str:
    """`text` with every delimiter in its harmless spelling."""
    while any(_holds(text, mark) for mark in delimiters):
        for mark, harmless in delimiters.items():
            text = f" {text} ".replace(mark, harmless).removeprefix(" ").removesuffix(" ")
    return text


def _shared(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    """What both begin with."""
    return tuple(token for token, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _behind(before: str, written: str) -> str:
    """The correction in an output that should say `before` first; some models leave out the space at its end."""
    bare = before.rstrip()
    return written.removeprefix(bare).removeprefix(before[len(bare) :])


def _holds(text: str, mark: str) -> bool:
    """Whether the delimiter is in the text, as it stands in the template: between spaces."""
    return mark in f" {text} "


def _question(exchange: Exchange) -> str:
    only = len(exchange.turns) == 1 and exchange.turns[0].role == "user"
    asked = exchange.turns[0].text if only else "\n".join(f"{turn.role}: {turn.text}" for turn in exchange.turns)
    return "".join([*(f"{passage}\n\n" for passage in exchange.context), asked])
