"""Aligners from nothing for real data: small ones, trained on the train part of a set, measured on its dev part.

GSM8K: solutions that models really wrote, each right or wrong; fixed is what ends in the reference's number.
ParaDetox: rude sentences with their rewrites by people; the rewrites are the sentences that need nothing, and fixed is
what equals one of the sentence's rewrites. Its texts are never printed and never written to a file of results.
"""

from __future__ import annotations

import difflib
import json
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import side_by_side
from report import Figures

from aligner_chain import Aligner, Exchange, Turn
from aligner_chain.checkpoint import AlignerMetadata, write_metadata
from aligner_chain.engines.loading import load
from aligner_chain.templates import prepare_tokenizer
from bootstrap.aligner_training import AlignerTrainingSettings, train_aligner
from bootstrap.demo.models import new_reader
from bootstrap.demo.start import EXTRA
from bootstrap.pairs import Triple
from bootstrap.sft import TrainingSettings

Row = Mapping[str, Any]
ASKED = "Say this politely."
"""The question of every sentence of ParaDetox, which has none of its own."""
TEMPLATE = "aligner-chain/1"


@dataclass(frozen=True)
class Size:
    """How large an Aligner is, and how long each of its two stages takes; `words` is the tokenizer's vocabulary."""

    words: int
    hidden: int
    window: int
    warm_up: float
    epochs: float
    batch: int
    rate: float = 2e-3


@dataclass(frozen=True)
class Labelled:
    """Answers that need nothing and answers that do, with the accepted texts of each `split_key`."""

    right: Sequence[Exchange]
    wrong: Sequence[Exchange]
    accepted: Mapping[str, frozenset[str]]


def rows_of(folder: Path, part: str) -> list[Row]:
    lines = (folder / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


# --- the two sets ----------------------------------------------------------------------------------------------


def paradetox(rows: Sequence[Row]) -> Labelled:
    """Every sentence once, whatever the number of its rewrites; one that needed no change is none of either kind."""
    accepted: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        accepted[row["answer"]].add(row["correction"])
    rude = [text for text, rewrites in accepted.items() if text not in rewrites]
    neutral = dict.fromkeys(row["correction"] for row in rows if row["correction"] not in accepted)
    known = {text: frozenset(accepted[text]) for text in rude} | {text: frozenset([text]) for text in neutral}
    return Labelled([_sentence(text) for text in neutral], [_sentence(text) for text in rude], known)


def _sentence(text: str) -> Exchange:
    return Exchange(turns=(Turn(role="user", text=ASKED),), answer=text, split_key=text)


def gsm8k(rows: Sequence[Row]) -> Labelled:
    answers = [
        (replace_key(Exchange.of(row["question"], row["answer"]), row["group"]), row["is_correct"]) for row in rows
    ]
    accepted = {row["group"]: frozenset([row["reference"]]) for row in rows}
    return Labelled([one for one, fine in answers if fine], [one for one, fine in answers if not fine], accepted)


def replace_key(exchange: Exchange, key: str) -> Exchange:
    return Exchange(turns=exchange.turns, answer=exchange.answer, split_key=key)


def same_text(known: Labelled, exchange: Exchange, text: str) -> bool:
    return text in known.accepted[exchange.split_key or ""]


def same_number(known: Labelled, exchange: Exchange, text: str) -> bool:
    """Whether the text ends in the reference's number."""
    [reference] = known.accepted[exchange.split_key or ""]
    return _number(text) is not None and _number(text) == _number(reference)


def _number(text: str) -> float | None:
    found = re.findall(r"^A: *\$?(-?[\d,]*\.?\d+)", text, re.MULTILINE)
    return float(found[-1].replace(",", "")) if found else None


def triples_of(known: Labelled) -> list[Triple]:
    """Right answers as they are, and each wrong one with each of its accepted texts."""
    keeps = [Triple(turns=one.turns, answer=one.answer, correction=None) for one in known.right]
    fixes = [
        Triple(turns=one.turns, answer=one.answer, correction=text)
        for one in known.wrong
        for text in sorted(known.accepted[one.split_key or ""])
    ]
    return keeps + fixes


# --- training --------------------------------------------------------------------------------------------------


def trained(
    work: Path, name: str, triples: Sequence[Triple], size: Size, seed: int, start: Path | None = None
) -> tuple[Aligner, Figures]:
    """Trains once; later calls load the Aligner and what its training took from `work`.

    `start` is the folder of an Aligner that is trained on, without another warm-up, in the place of random weights.
    """
    folder = work / name
    if not (folder / "aligner.json").exists():
        _train(folder, name, triples, size, seed, start)
    return Aligner.from_pretrained(folder), json.loads((folder / "training.json").read_text(encoding="utf-8"))


def _train(
    folder: Path, name: str, triples: Sequence[Triple], size: Size, seed: int, start: Path | None = None
) -> None:
    began = time.process_time()
    model, tokenizer = _new(triples, size, seed) if start is None else _loaded(start)
    warm_up, correction = (_stage(size, epochs, seed) for epochs in (size.warm_up, size.epochs))
    settings = AlignerTrainingSettings(warm_up=None if start else warm_up, correction=correction, seed=seed)
    done = train_aligner(model, tokenizer, triples, folder / "work", settings)
    done.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    told = {
        "parameters": done.model.num_parameters(),
        "rows": done.rows,
        "keep_share": done.keep_share,
        "dropped": done.dropped,
    }
    told |= {"cpu_s": round(time.process_time() - began)}
    (folder / "training.json").write_text(json.dumps(told), encoding="utf-8")
    write_metadata(folder, AlignerMetadata(name=name, version=str(seed), template=TEMPLATE))


def _new(triples: Sequence[Triple], size: Size, seed: int) -> tuple[Any, Any]:
    texts = {text for one in triples for text in (one.turns[-1].text, one.answer, one.correction or "")}
    tokenizer = new_tokenizer(texts, size.words)
    return new_reader(tokenizer, seed=seed, hidden=size.hidden, window=size.window), tokenizer


def _loaded(folder: Path) -> tuple[Any, Any]:
    return load(folder, revision=None, device="cpu", dtype="float32")


def _stage(size: Size, epochs: float, seed: int) -> TrainingSettings:
    return TrainingSettings(
        epochs=epochs,
        batch=size.batch,
        learning_rate=size.rate,
        warmup=0.1,
        seed=seed,
        bucketed=True,
        threads=1,
        extra=EXTRA,
    )


def new_tokenizer(texts: Iterable[str], words: int) -> Any:
    """Byte-level BPE in which each digit is a token of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(split)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|pad|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=words, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(sorted(texts), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=special[0], eos_token=special[1])
    prepare_tokenizer(tokenizer)
    return tokenizer


# --- measuring -------------------------------------------------------------------------------------------------


def measure(aligner: Aligner, known: Labelled, judge: Any) -> Figures:
    """Side by side as for the desk, and how close to an accepted text the wrong ones come, unchanged and corrected."""
    figures = side_by_side.measure(aligner, known.right, known.wrong, lambda one, text: judge(known, one, text))
    served = aligner.correct(known.wrong)
    return figures | {
        "closeness": {
            "unchanged": _closeness(known, [(one, one.answer) for one in known.wrong]),
            "corrected": _closeness(known, [(one.exchange, one.text) for one in served]),
        }
    }


def _closeness(known: Labelled, texts: Sequence[tuple[Exchange, str]]) -> float:
    """The mean over texts of the likeness by words (2 matches / words of both) to the nearest accepted one."""
    return statistics.mean(
        max(_likeness(text, accepted) for accepted in known.accepted[one.split_key or ""]) for one, text in texts
    )


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one.split(), other.split(), autojunk=False).ratio()
