"""How long after the upstream's last token a correction comes, with the Aligner reading along and without.

    python benchmarks/overlap.py [--model 100m] [--answers 50]

Answers of 256 words, each of which is a token, come in pieces of 4, as fast as the Aligner reads. Two cases: a verdict to keep (what counts is the
whole correction), and an Aligner without a verdict that streams (what counts is its first token). With and without
overlap take turns on fresh texts; the model has random weights, of which the verdict is biased, and the first token costs
the same whatever it is. Times are those of the clock from the end of the upstream, in steps: one step is the median time
of a forward of one token in the same run. Prints a table, writes benchmarks/results/overlap_<model>_<dtype>.json.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from stored import write
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from aligner_chain import Aligner, Exchange, Turn, __version__
from aligner_chain.bench.models import new_model
from aligner_chain.checkpoint import AlignerMetadata
from aligner_chain.engines.base import Request
from aligner_chain.engines.huggingface import HuggingFaceEngine
from aligner_chain.policy import Inspection
from aligner_chain.templates import get_template, prepare_tokenizer

TOKENS, PIECE, QUESTION = 256, 4, 80
KEEP = {"keep": 1e-12}
"""A threshold above which every verdict is to keep."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def words() -> list[str]:
    dice = random.Random(0)
    return ["".join(dice.choices(LETTERS, k=dice.randint(2, 6))) for _ in range(2000)]


def new_tokenizer() -> Any:
    """Byte-level BPE in which each of the words is a token, with the space before it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=8000, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([f" {word}" for word in WORDS] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    prepare_tokenizer(tokenizer)
    return tokenizer


def text(length: int, dice: random.Random) -> str:
    return "".join(f" {dice.choice(WORDS)}" for _ in range(length))


WORDS = words()


class Setting:
    """One model behind two templates: with a verdict, and without."""

    def __init__(self, name: str, dtype: str) -> None:
        self.tokenizer = new_tokenizer()
        self.engine = HuggingFaceEngine(new_model(name, dtype, 0), self.tokenizer)
        self.verdict, self.plain = (
            Aligner(
                self.engine,
                metadata=AlignerMetadata(name="random", version="1", template=template, thresholds=KEEP),
                template=get_template(template),
                tokenizer=self.tokenizer,
            )
            for template in ("aligner-chain/1", "pku-aligner/2")
        )

    def step_s(self) -> float:
        """Seconds of a forward of one token, behind as many as in the measurement."""
        [one], [many] = (self._decode(new) for new in (1, 33))
        return (many - one) / 32

    def _decode(self, new: int) -> list[float]:
        prompt = tuple(random.Random(new).randrange(256) for _ in range(QUESTION + TOKENS))
        start = time.perf_counter()
        [ticket] = self.engine.submit([Request(key="", prompt=prompt, max_new=new)])
        ticket.result()
        return [time.perf_counter() - start]

    def approved(self, question: str, answer: str, *, overlap: bool) -> float:
        """Seconds from the upstream's end to an approval."""
        turns = (Turn(role="user", text=question),)
        if not overlap:
            start = time.perf_counter()
            [correction] = self.verdict.correct([Exchange(turns=turns, answer=answer)])
        else:
            with self.verdict.begin(turns) as session:
                self._write(answer, session.feed)
                start = time.perf_counter()
                correction = session.finish()
        assert correction.outcome == "approved", correction
        return time.perf_counter() - start

    def first_token(self, question: str, answer: str, *, overlap: bool) -> float:
        """Seconds from the upstream's end to the first token of an Aligner without a verdict."""
        exchange = Exchange.of(question, answer)
        with self.plain.begin(exchange.turns) as session:
            if overlap:
                self._write(answer, session.feed)
            aligner = session.aligner if overlap else self.plain
            start = time.perf_counter()
            _, [ticket] = aligner._start([exchange], [Inspection()], aligner._asked(None, None, None, stream=True))
            while not ticket.ids and not ticket.future.done():
                time.sleep(0.0002)
            seconds = time.perf_counter() - start
            ticket.cancel()
        return seconds

    def _write(self, answer: str, feed: Callable[[str], None]) -> None:
        """Writes as an upstream does that is a little slower than the Aligner reads."""
        written = [f" {word}" for word in answer.split()]
        for at in range(0, len(written), PIECE):
            feed("".join(written[at : at + PIECE]))
            time.sleep(0.002)
            while self.engine.busy:
                time.sleep(0.001)


def measured(setting: Setting, answers: int) -> dict[str, Any]:
    dice, found = random.Random(0), {}
    for name, measure in (("approved", setting.approved), ("first_token", setting.first_token)):
        pairs = []
        for number in range(answers + 2):  # the first two warm up
            texts = [(text(QUESTION, dice), text(TOKENS, dice)) for _ in range(2)]
            pair = measure(*texts[0], overlap=True), measure(*texts[1], overlap=False)
            pairs += [pair] if number > 1 else []
        step = statistics.median(setting.step_s() for _ in range(9))
        ratios = sorted(slow / fast for fast, slow in pairs)
        found[name] = {
            "answers": answers,
            "step_ms": 1000 * step,
            "overlap_steps": statistics.median(fast for fast, _ in pairs) / step,
            "overlap_steps_90": statistics.quantiles([fast for fast, _ in pairs], n=10)[-1] / step,
            "alone_steps": statistics.median(slow for _, slow in pairs) / step,
            "times_sooner": statistics.median(ratios),
            "times_sooner_quartiles": [ratios[len(ratios) // 4], ratios[len(ratios) * 3 // 4]],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("tiny", "100m"), default="tiny")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--answers", type=int, default=50)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    setting = Setting(arguments.model, arguments.dtype)
    found = measured(setting, arguments.answers)
    dtype = str(setting.engine.model.dtype).removeprefix("torch.")
    setting.engine.close()
    for name, one in found.items():
        print(
            f"{name:<12} {one['overlap_steps']:6.2f} steps with overlap, {one['alone_steps']:6.2f} without: "
            f"{one['times_sooner']:.2f} times sooner (a step is {one['step_ms']:.1f} ms)"
        )
    told = {
        "model": arguments.model,
        "dtype": dtype,
        "threads": 1,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "aligner_chain": __version__,
        **found,
    }
    write(f"overlap_{arguments.model}_{dtype}", told)


if __name__ == "__main__":
    main()
