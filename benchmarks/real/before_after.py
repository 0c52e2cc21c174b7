"""The pairs that were served one after the other, on the same beginnings: each upstream alone, and with its Aligner."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import rude
from endings import Ruler, Said, asked, cut
from politeness import mean
from report import Figures

from aligner_chain import Aligner, Exchange
from aligner_chain.engines.base import Draft, Request
from aligner_chain.engines.huggingface import HuggingFaceEngine
from aligner_chain.templates import chat_prompt, encode
from bootstrap.answering import Answering
from bootstrap.registry import PairVersion


@dataclass(frozen=True)
class Served:
    """A pair that was served: what it is called here, the upstream's identity, and the folders of both."""

    name: str
    identity: str
    upstream: Path
    aligner: Path

    @classmethod
    def of(cls, name: str, pair: PairVersion) -> Served:
        if pair.upstream is None:
            raise ValueError(f"pair {pair.number} is an Aligner alone, for an upstream that is not trained here")
        return cls(name, pair.upstream.identity, pair.upstream.path, pair.aligner.path)


@dataclass(frozen=True)
class Held:
    """What the pairs are measured on: each beginning with its sentence, and the rewrites of all sentences."""

    sentences: Mapping[str, str]
    rewrites: rude.Rewrites
    lexicon: frozenset[str]
    vocabulary: frozenset[str]

    def ruler(self, start: Sequence[str]) -> Ruler:
        rewrites = [self.rewrites[text] for text in self.sentences.values()]
        return Ruler([*self.sentences], rewrites, start, self.lexicon, self.vocabulary)


def measure(pairs: Sequence[Served], held: Held, answering: Answering, again: Answering | None = None) -> Figures:
    """A row for each upstream alone and one for it with its Aligner.

    `again` asks the start upstream once more with other noise: so alike are two answers of which none was trained away.
    """
    said = {pair.name: _said(pair, held, answering) for pair in pairs}
    ruler = held.ruler(said[pairs[0].name].answers)
    rows = dict(_rows(ruler, said))
    if again is not None:
        answers = _answers(pairs[0].upstream, held, again)
        rows[f"{pairs[0].name}, drawn again"] = ruler.row(Said(answers, answers))
    return rows


def _rows(ruler: Ruler, said: Mapping[str, Said]) -> Iterator[tuple[str, Figures]]:
    for name, one in said.items():
        yield f"{name}, alone", ruler.row(Said(one.answers, one.answers))
        yield f"{name}, with the Aligner", ruler.corrected(one)


def _said(pair: Served, held: Held, answering: Answering) -> Said:
    answers = _answers(pair.upstream, held, answering)
    exchanges = [Exchange(turns=asked(one), answer=answer) for one, answer in zip(held.sentences, answers, strict=True)]
    with contextlib.closing(Aligner.from_pretrained(pair.aligner)) as aligner:
        return Said(answers, [one.text for one in aligner.correct(exchanges)])


def _answers(upstream: Path, held: Held, answering: Answering) -> list[str]:
    prompts = [Exchange(turns=asked(one), answer="") for one in held.sentences]
    return [one.answer for one in answering.answer_from(upstream, prompts, upstream=upstream.name)]


def likelihoods(pairs: Sequence[Served], held: Held) -> Figures:
    """The mean log-likelihood of a token of what was really said, in nats: rude endings, polite ones, and what changed.

    The endings are of the sentences as they are, of those with the lexicon's words deleted, and of people's rewrites that
    begin as their sentence does, in small letters, as nearly all is that the upstream knows.
    """
    texts = {
        "rude": [_exchange(one, cut(text)[1]) for one, text in held.sentences.items()],
        "deleted": [_exchange(one, rude.deleted(cut(text)[1], held.lexicon)) for one, text in held.sentences.items()],
        "people": [
            _exchange(one, cut(rewrite.lower())[1])
            for one, text in held.sentences.items()
            for rewrite in held.rewrites[text]
            if cut(rewrite.lower())[0] == one
        ],
    }
    said = {name: [one for one in some if one.answer] for name, some in texts.items()}
    return {pair.name: {name: mean(likelihood(pair.upstream, some)) for name, some in said.items()} for pair in pairs}


def _exchange(beginning: str, ending: str) -> Exchange:
    return Exchange(turns=asked(beginning), answer=ending)


def likelihood(folder: Path, exchanges: Sequence[Exchange]) -> list[float]:
    """The mean over each answer's tokens."""
    with contextlib.closing(HuggingFaceEngine.from_pretrained(str(folder), max_batch=128)) as engine:
        ids = [encode(engine.tokenizer, one.answer) for one in exchanges]
        requests = [
            Request(
                key=str(number),
                prompt=chat_prompt(engine.tokenizer, one.turns),
                draft=Draft(ids=answer, spans=((0, 0),) * len(answer)),
                score_draft=True,
            )
            for number, (one, answer) in enumerate(zip(exchanges, ids, strict=True))
        ]
        scored = [ticket.result().draft_logprobs or () for ticket in engine.submit(requests)]
    return [sum(one) / len(one) for one in scored]
