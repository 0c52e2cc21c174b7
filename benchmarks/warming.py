"""What prefix warming leaves to be read at an answer's end, and what it costs, on a real vLLM.

    python benchmarks/warming.py [--vllm-python PYTHON] [--answers 5] [--every 0 64 128 256 512]

Prompts of random tokens grow as an upstream would write them; each schedule has prompts of its own, in turns. Seconds are those
of the clock from the end of a prompt to the first token behind it; what the server read and found in its cache comes from
its `/metrics`. The model has random weights. Prints a table, writes benchmarks/results/warming.json.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import re
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
from stored import write

from aligner_chain import Aligner, __version__
from aligner_chain.bench.models import new_model, new_tokenizer
from aligner_chain.checkpoint import AlignerMetadata, write_metadata
from aligner_chain.engines.base import Request
from aligner_chain.engines.server import ServerOptions
from aligner_chain.engines.server.warming import SENT
from aligner_chain.errors import ServerError
from aligner_chain.telemetry import counted

VLLM = Path(__file__).parents[1] / ".venv-vllm" / "bin" / "python"
QUESTION, ANSWER, PIECE = 128, 768, 8
PACE = 128
"""Tokens that the upstream writes in a second."""
WORDS = range(1000, 8000)
START_S = 400


@contextmanager
def served(python: str, folder: Path) -> Iterator[str]:
    """The address of a vLLM that serves a folder, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        python,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(folder),
        "--served-model-name",
        "aligner",
    ]
    command += ["--dtype", "float32", "--enforce-eager", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1"}
    with (folder / "vllm.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


def connected(url: str, folder: Path, every: int) -> Aligner:
    """An Aligner there, as soon as it serves."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            return Aligner.from_server(url, "aligner", checkpoint=folder, options=ServerOptions(warm_every=every))
        except ServerError:
            if time.monotonic() > deadline:
                raise
            time.sleep(2)


def new_checkpoint(folder: Path, name: str) -> None:
    """A model of random weights whose template has no verdict, which it would hardly give."""
    new_model(name, "float32", 0).save_pretrained(folder)
    new_tokenizer().save_pretrained(folder)
    write_metadata(folder, AlignerMetadata(name="random", version="1", template="pku-aligner/2"))


def told(url: str) -> dict[str, float]:
    """What the server has read, what it found in its cache, and the requests that went ahead."""
    text = httpx.get(url.replace("/v1", "/metrics"), trust_env=False).text

    def total(name: str) -> float:
        return sum(float(n) for n in re.findall(rf"^vllm:{name}.* (\S+)$", text, re.M))

    queried, found = total("prefix_cache_queries_total"), total("prefix_cache_hits_total")
    return {"read": queried - found, "found": found, "ahead": counted(SENT)}


def end_s(aligner: Aligner, prompt: tuple[int, ...]) -> float:
    """Seconds from the end of a prompt, which grew at the pace of an upstream, to the token behind it."""
    whole = Request(key="", prompt=prompt, max_new=1)
    ticket = None
    if aligner.engine.capabilities.overlap:
        ticket = aligner.engine.open(Request(key="", prompt=prompt[:QUESTION]))
    for end in range(QUESTION, len(prompt), PIECE):
        time.sleep(PIECE / PACE)
        if ticket is not None:
            ticket.feed(prompt[: end + PIECE])
    start = time.perf_counter()
    if ticket is None:
        [ticket] = aligner.engine.submit([whole])
    else:
        ticket.seal(whole)
    ticket.result()
    return time.perf_counter() - start


def measured(url: str, aligners: dict[int, Aligner], answers: int) -> dict[str, dict[str, float]]:
    dice, found = random.Random(0), {every: list[dict[str, float]]() for every in aligners}
    for number in range(answers + 1):  # the first one warms up
        for every, aligner in aligners.items():
            before = told(url)
            seconds = end_s(aligner, tuple(dice.choices(WORDS, k=QUESTION + ANSWER)))
            after = told(url)
            if number:
                found[every].append({"end_s": seconds, **{name: after[name] - before[name] for name in after}})
    return {
        str(every): {name: statistics.median(one[name] for one in rows) for name in rows[0]}
        for every, rows in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", default=str(VLLM), help="Python of an environment with vLLM (make vllm-env)")
    parser.add_argument("--model", default="100m", choices=("tiny", "100m"))
    parser.add_argument("--answers", type=int, default=5)
    parser.add_argument("--every", type=int, nargs="+", default=[0, 64, 128, 256, 512], help="schedules; 0: no warming")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        new_checkpoint(folder, arguments.model)
        url = stack.enter_context(served(arguments.vllm_python, folder))
        aligners = {every: connected(url, folder, every) for every in arguments.every}
        for aligner in aligners.values():
            stack.callback(aligner.close)
        found = measured(url, aligners, arguments.answers)
    print("every  end to first token, s  tokens read  found in the cache  requests ahead")
    for every, one in found.items():
        print(f"{every:>5}  {one['end_s']:>21.2f}  {one['read']:>11.0f}  {one['found']:>18.0f}  {one['ahead']:>14.0f}")
    setting = {"prompt": QUESTION + ANSWER, "pace": PACE, "answers": arguments.answers, "model": arguments.model}
    setting |= {"aligner_chain": __version__, "machine": platform.machine(), "processors": os.cpu_count()}
    write("warming", {"setting": setting, "by_every": found})


if __name__ == "__main__":
    main()
