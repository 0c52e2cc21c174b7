"""Our own template: special tokens set off the segments, and the output starts with a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

from aligner_chain.engines.base import Draft
from aligner_chain.errors import TemplateError, UnreadableCorrectionError
from aligner_chain.exchange import Exchange, Turn
from aligner_chain.templates.base import CorrectionTemplate, Parsed, Rendered, refuse_control
from aligner_chain.templates.plain import PlainText, plain_text
from aligner_chain.templates.splice import spliced

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

ROLES = {"system": "<|ac:system|>", "user": "<|ac:question|>", "assistant": "<|ac:reply|>", "tool": "<|ac:tool|>"}
CONTEXT, CRITERION, ANSWER, OUTPUT = "<|ac:context|>", "<|ac:criterion|>", "<|ac:answer|>", "<|ac:output|>"
KEEP, FIX, BROKEN = "<|ac:keep|>", "<|ac:fix|>", "<|ac:broken|>"
SPECIAL_TOKENS = (*ROLES.values(), CONTEXT, CRITERION, ANSWER, OUTPUT, KEEP, FIX, BROKEN)


def prepare_tokenizer(tokenizer: Tokenizer) -> int:
    """Adds the special tokens of aligner-chain/1 that the tokenizer lacks, and returns how many were added.

    The model needs `resize_token_embeddings(len(tokenizer))` afterwards where they exceed its vocabulary.
    """
    known = tokenizer.get_vocab()
    missing = [token for token in SPECIAL_TOKENS if token not in known]
    return int(tokenizer.add_tokens(missing, special_tokens=True))


class OwnTemplate(CorrectionTemplate):
    """aligner-chain/1. Each segment is tokenised by itself, so the answer has the same ids in prompt and output.

    BOS, where the tokenizer has one, then each turn after the token of its role, each passage, each criterion, the
    answer, the output token. The output is KEEP, or FIX with the corrected text and, last, each broken criterion after
    its own token; then EOS.
    """

    name = "aligner-chain/1"
    text = (
        f"[{'|'.join(ROLES.values())}]{{turn}}... {CONTEXT}{{passage}}... {CRITERION}{{criterion}}... "
        f"{ANSWER}{{answer}}{OUTPUT} -> {KEEP} or {FIX}{{correction}}[{BROKEN}{{criterion}}]..."
    )
    verdict = True

    def check(self, tokenizer: Tokenizer) -> PlainText:
        plain = plain_text(tokenizer)
        missing = [token for token in SPECIAL_TOKENS if token not in plain.added]
        if missing:
            raise TemplateError(
                f"The tokenizer lacks {len(missing)} special tokens of {self.name}, the first being {missing[0]}. Ways "
                "out: train the model for this template with aligner-bootstrap train-aligner, or name the template "
                'it was trained with, such as template="pku-aligner/1".'
            )
        if tokenizer.eos_token_id is None:
            raise TemplateError(f"{self.name} needs a tokenizer with an EOS token; set tokenizer.eos_token.")
        return plain

    def target(self, tokenizer: Tokenizer, correction: str | None, criteria: Sequence[str] = ()) -> tuple[int, ...]:
        plain = self.check(tokenizer)
        if correction is None:
            return (plain.added[KEEP], int(tokenizer.eos_token_id))
        broken = [token for name in criteria for token in (plain.added[BROKEN], *plain.encode(name))]
        return (plain.added[FIX], *plain.encode(correction), *broken, int(tokenizer.eos_token_id))

    def parse(self, ids: Sequence[int], tokenizer: Tokenizer, rendered: Rendered) -> Parsed:
        keep, fix = rendered.choices
        if ids and ids[0] == keep:
            return Parsed(keep=True, text=rendered.answer)
        if not ids or ids[0] != fix:
            raise UnreadableCorrectionError(
                f"The output starts with {tokenizer.convert_ids_to_tokens(list(ids[:1]))} and not with {KEEP} or {FIX}. "
                "The model was probably not trained for aligner-chain/1, or too little: name its own template with "
                "template=, or train it with aligner-bootstrap train-aligner."
            )
        plain = plain_text(tokenizer)
        text, *criteria = _split(ids[1:], plain.added[BROKEN])
        refuse_control((*text, *chain(*criteria)), plain.control, tokenizer)
        corrected = spliced(text, plain, rendered.draft, rendered.answer)
        return Parsed(keep=False, text=corrected, criteria=tuple(dict.fromkeys(map(plain.decode, criteria))))

    def _certain(self, ids: Sequence[int], plain: PlainText, rendered: Rendered) -> str:
        text = _split(ids[1:], plain.added[BROKEN])[0]
        readable = ids and ids[0] == rendered.choices[1] and plain.control.isdisjoint(text)
        return plain.decode(text) if readable else ""

    def _build(self, exchange: Exchange, tokenizer: Tokenizer, plain: PlainText, criteria: Sequence[str]) -> Rendered:
        ids, spans = plain.encode_with_spans(exchange.answer)
        asked, *_ = self._beginning(exchange, tokenizer, plain, criteria)
        return Rendered(
            prompt=(*asked, *ids, plain.added[OUTPUT]),
            answer=exchange.answer,
            draft=Draft(ids=ids, spans=spans, lead=(plain.added[FIX],), ends=(plain.added[BROKEN],)),
            choices=(plain.added[KEEP], plain.added[FIX]),
            stop_ids=(plain.added[KEEP],),
        )

    def _beginning(
        self, exchange: Exchange, tokenizer: Tokenizer, plain: PlainText, criteria: Sequence[str]
    ) -> tuple[tuple[int, ...], str, int]:
        segments = [(_role_token(turn), turn.text) for turn in exchange.turns]
        segments += [(CONTEXT, passage) for passage in exchange.context]
        segments += [(CRITERION, name) for name in criteria]
        bos = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
        asked = [token for name, text in segments for token in (plain.added[name], *plain.encode(text))]
        return (*bos, *asked, plain.added[ANSWER]), "", 0


def _role_token(turn: Turn) -> str:
    try:
        return ROLES[turn.role]
    except KeyError:
        raise TemplateError(f"A turn has the role {turn.role!r}; known are {', '.join(ROLES)}.") from None


def _split(ids: Sequence[int], separator: int) -> list[tuple[int, ...]]:
    parts: list[list[int]] = [[]]
    for token in ids:
        if token == separator:
            parts.append([])
        else:
            parts[-1].append(token)
    return [tuple(part) for part in parts]
