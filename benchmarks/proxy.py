"""What the proxy itself costs per request, beside the same request straight to the upstream; and whether its memory stays flat.

    python benchmarks/proxy.py [--pairs 1000] [--flat 4000]

An upstream that answers at once and the proxy, with a scripted Aligner, run in a process of their own each, on 127.0.0.1. One
client with kept connections asks both in turns, whole and streamed; which of them is first changes from pair to pair. Answers
are approved, since a correction's diff and checks are the Aligner's cost and not the proxy's; a row with corrections shows it.
Streams come at 2 ms an event, as of a fast model, and, as a row of its own, all of it in one burst.

What the proxy adds is the way there, from the client's first byte to the upstream's having read the request, and the way back,
from just before the upstream writes its last event to the client's last byte, each less the same way without the proxy; the
upstream tells both moments in that event, by the clock that all processes share. What lies between them is the upstream's own
time, and in a paced stream 75 sleeps, which end later where cores are busy. That is in the overhead, the difference of the
medians of the whole times; beside it stand the differences within the pairs and the processor time that the proxy took per
request. All of it holds the second way over the loopback, reading and writing the answer, the scripted Aligner's thread, the
metrics and the lines of the log (to /dev/null).

Then `--flat` requests, half of them streams and a tenth of those left by their client, are sent to the proxy, eight at a time, and
its resident memory is read before and after; a fifth of them warms up.
Prints a table and writes benchmarks/results/proxy.json. Budget: an overhead of at most 3 ms at the median.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import multiprocessing
import os
import platform
import random
import re
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
from stored import write

from aligner_chain import Aligner, __version__

BUDGET_MS = 3.0
WORDS = 150
PIECES = 75
PACE_S = 0.002
APPROVED, CORRECTED = "is it fine?", "is it bad?"
ANSWER = " ".join(f"word{number}" for number in range(WORDS)) + " bad end."


def upstream(port: int) -> None:
    """Answers at once: whole, or in pieces of two words."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse
    from starlette.routing import Route

    known = {"id": "chatcmpl-1", "created": 1, "model": "m"}
    message = {"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}
    step = len(ANSWER) // PIECES + 1
    texts = [ANSWER[start : start + step] for start in range(0, len(ANSWER), step)]
    deltas = [{"index": 0, "delta": {"content": text}, "finish_reason": None} for text in texts]
    end = {"index": 0, "delta": {}, "finish_reason": "stop"}

    def event(delta: dict[str, Any], **times: float) -> bytes:
        body = {**known, "object": "chat.completion.chunk", "choices": [delta], **times}
        return f"data: {json.dumps(body)}\n\n".encode()

    events = [event(delta) for delta in deltas]

    async def answer(request: Request) -> Response:
        asked = await request.json()
        came = time.perf_counter()
        if asked["stream"]:

            async def pieces() -> Any:
                for one in events:
                    if asked["pace_s"]:
                        await asyncio.sleep(asked["pace_s"])
                    yield one
                yield event(end, came=came, sent=time.perf_counter())
                yield b"data: [DONE]\n\n"

            return StreamingResponse(pieces(), media_type="text/event-stream")
        whole = {**known, "object": "chat.completion", "choices": [message], "came": came, "sent": time.perf_counter()}
        return Response(json.dumps(whole), media_type="application/json")

    app = Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of every stream that was left in the middle
    uvicorn.run(app, port=port, log_level="critical", http="h11", timeout_keep_alive=600)


def proxy(port: int, to: int) -> None:
    from aligner_chain.proxy import Settings, serve

    sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115  (the log of every request is written, and thrown away)
    aligner = Aligner.scripted(
        lambda one: one.answer.replace("bad", "good") if one.question == CORRECTED else one.answer
    )
    serve(Settings(upstream=f"http://127.0.0.1:{to}/v1", aligner=aligner), port=port)


@contextmanager
def both() -> Iterator[tuple[str, str, int]]:
    """The URLs of the upstream and of the proxy before it, and the proxy's process id."""
    spawn = multiprocessing.get_context("spawn")
    ports = free_port(), free_port()
    processes = [
        spawn.Process(target=upstream, args=(ports[0],), daemon=True),
        spawn.Process(target=proxy, args=(ports[1], ports[0]), daemon=True),
    ]
    for process in processes:
        process.start()
    for port in ports:
        wait_for(port)
    try:
        direct, proxied = (f"http://127.0.0.1:{port}/v1/chat/completions" for port in ports)
        yield direct, proxied, processes[1].pid or 0
    finally:
        for process in processes:
            process.terminate()
            process.join(10)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_for(port: int) -> None:
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"nothing listens at {port}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Times:
    """Milliseconds of one request: all of it, until the upstream had read it, and from the upstream's last event on."""

    all: float
    there: float
    back: float


def timed(client: httpx.Client, url: str, body: dict[str, Any]) -> Times:
    start = time.perf_counter()
    response = client.post(url, json=body)
    end = time.perf_counter()
    assert response.status_code == 200, response.text
    came, sent = (float(re.findall(rf'"{name}": ([0-9.e+-]+)', response.text)[-1]) for name in ("came", "sent"))
    return Times(all=(end - start) * 1e3, there=(came - start) * 1e3, back=(end - sent) * 1e3)


def asking(question: str, *, stream: bool) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": question}], "stream": stream, "pace_s": 0}


def cpu_ms(process: int) -> float:
    """The processor time that a process has taken, in steps of 10 ms."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") * 1e3


def overhead(
    direct: str, proxied: str, process: int, pairs: int, *, stream: bool, question: str = APPROVED, pace_s: float = 0.0
) -> dict[str, Any]:
    """The times of both ways, in turns."""
    body = asking(question, stream=stream) | {"pace_s": pace_s}
    times: dict[str, list[Times]] = {direct: [], proxied: []}
    before = cpu_ms(process)
    with httpx.Client(timeout=60) as client:
        for pair in range(pairs + pairs // 10):
            for url in (direct, proxied) if pair % 2 else (proxied, direct):
                times[url].append(timed(client, url, body))
    cpu = (cpu_ms(process) - before) / len(times[proxied])
    return compared(times[direct][pairs // 10 :], times[proxied][pairs // 10 :]) | {"cpu_ms": cpu}


def compared(direct: list[Times], proxied: list[Times]) -> dict[str, Any]:
    """What the second way takes longer than the first."""

    def longer(name: str) -> float:
        return statistics.median(getattr(one, name) for one in proxied) - statistics.median(
            getattr(one, name) for one in direct
        )

    differences = [one.all - other.all for other, one in zip(direct, proxied, strict=True)]
    return {
        "pairs": len(direct),
        "direct_ms": statistics.median(one.all for one in direct),
        "proxied_ms": statistics.median(one.all for one in proxied),
        "there_ms": longer("there"),
        "back_ms": longer("back"),
        "added_ms": longer("there") + longer("back"),
        "overhead_ms": longer("all"),
        "median_of_differences_ms": statistics.median(differences),
        "p90_of_differences_ms": statistics.quantiles(differences, n=10)[-1],
        "p10_of_differences_ms": statistics.quantiles(differences, n=10)[0],
        "budget_ms": BUDGET_MS,
        "met": longer("all") <= BUDGET_MS,
    }


async def many(proxied: str, number: int, seed: int) -> None:
    """Requests eight at a time: half of them streams, a tenth of which their client leaves in the middle."""
    choose, gate = random.Random(seed), asyncio.Semaphore(8)

    async def one(client: httpx.AsyncClient, *, stream: bool, leave: bool) -> None:
        async with gate, client.stream("POST", proxied, json=asking(CORRECTED, stream=stream)) as response:
            if not leave:
                await response.aread()

    async with httpx.AsyncClient(timeout=60) as client:
        plans = [(choose.random() < 0.5, choose.random() < 0.1) for _ in range(number)]
        await asyncio.gather(*(one(client, stream=stream, leave=stream and leave) for stream, leave in plans))


def resident_mib(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def flat(proxied: str, process: int, number: int) -> dict[str, Any]:
    """The proxy's memory after each fifth of the requests; the first warms it up."""
    sizes = []
    for fifth in range(5):
        asyncio.run(many(proxied, number // 5, seed=fifth))
        sizes.append(resident_mib(process))
    return {"requests": number, "resident_mib": sizes, "grown_mib": sizes[-1] - sizes[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000, help="requests each way, of each kind (default: 1000)")
    parser.add_argument("--flat", type=int, default=4000, help="requests while memory is watched (default: 4000)")
    arguments = parser.parse_args()
    with both() as (direct, proxied, process):
        result = {
            "machine": platform.platform(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "python": platform.python_version(),
            "aligner_chain": __version__,
            **{name: metadata.version(name) for name in ("starlette", "uvicorn", "httpcore", "h11")},
            "answer": {"characters": len(ANSWER), "events": PIECES},
            "whole": overhead(direct, proxied, process, arguments.pairs, stream=False),
            "streamed": overhead(direct, proxied, process, arguments.pairs // 5, stream=True, pace_s=PACE_S),
            "burst": overhead(direct, proxied, process, arguments.pairs, stream=True),
            "corrected": overhead(direct, proxied, process, arguments.pairs, stream=False, question=CORRECTED),
            "memory": flat(proxied, process, arguments.flat),
        }
    write("proxy", result)
    print(table(result))


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{name:<9} direct {row['direct_ms']:6.2f}   proxied {row['proxied_ms']:6.2f}   "
        f"adds {row['added_ms']:5.2f} ms (there {row['there_ms']:.2f}, back {row['back_ms']:.2f})   "
        f"overhead {row['overhead_ms']:5.2f} (of differences p10 {row['p10_of_differences_ms']:.2f}, "
        f"p90 {row['p90_of_differences_ms']:.2f})   processor {row['cpu_ms']:.2f}"
        for name, row in ((name, result[name]) for name in ("whole", "streamed", "burst", "corrected"))
    ]
    sizes = ", ".join(f"{size:.1f}" for size in result["memory"]["resident_mib"])
    lines.append(f"budget    an overhead of {BUDGET_MS:g} ms, for the first three")
    lines.append(f"memory    {sizes} MiB after each fifth of {result['memory']['requests']} requests")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
