"""A server on this machine that speaks `/v1/completions` as vLLM does, over an engine in this process, and fails on demand.

Greedy outputs are those of the engine, so what comes over HTTP can be compared with what the engine gives itself. `Dialect`
takes away what other servers do not do; `faults` are used up by one completion each. Adapters are loaded and unloaded while
it runs, if the dialect says so, and answer in the words that vLLM 0.32 has for it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

from aligner_chain.engines.base import Draft, Generation, Request
from aligner_chain.engines.huggingface import HuggingFaceEngine

_Json = dict[str, Any]

OPENAI = {"model", "prompt", "max_tokens", "temperature", "stream", "logprobs"}
"""The fields that a server takes which knows no others."""


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """What a server does. `strict`: it refuses fields that are not OpenAI's; `stumbles`: it fails at logprobs by name.

    `prefix_block` are the tokens in a block of its prefix cache, of which `/metrics` tells; None: there is no `/metrics`.
    """

    ids_in: bool = True
    ids_out: Literal["token_ids", "logprobs", ""] = "token_ids"
    named: bool = True
    most_logprobs: int = 20
    prompt_logprobs: bool = True
    streams: bool = True
    tokenize: bool = True
    models: bool = True
    strict: bool = False
    stumbles: bool = False
    written_as_ids: bool = True
    prefix_block: int | None = None
    adapters: bool = False
    metrics: bool = True


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What a completion comes to: a status, a body that is cut (or a stream, after `events`), nonsense, or nothing."""

    status: int = 0
    retry_after: str = ""
    message: str = "no"
    cut: bool = False
    events: int = 1
    nonsense: bool = False
    hang: bool = False


class CompletionsServer(ThreadingHTTPServer):
    """Serves while it is used as a context manager. `asked` are the completions that were asked for, `seen` all paths."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(
        self,
        engine: HuggingFaceEngine,
        *,
        model: str = "aligner",
        root: str | None = None,
        dialect: Dialect | None = None,
        key: str = "",
        port: int = 0,
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.engine, self.model, self.root, self.key = engine, model, root, key
        self.tokenizer: Any = engine.tokenizer
        self.dialect = dialect or Dialect()
        self.adapters: dict[str, tuple[str, str]] = {}
        """By its name, the folder of an adapter and what the engine calls it."""
        self.loads: list[str] = []
        self.refuses_loads = 0
        """The status with which it refuses to load an adapter."""
        self._busy: Counter[str] = Counter()
        self._seen_busy: dict[str, float] = {}
        self._counting = threading.Lock()
        self.faults: deque[Fault] = deque()
        self.always: Fault | None = None
        self.asked: list[_Json] = []
        self.seen: list[str] = []
        self.authorised: set[str | None] = set()
        self.answering = threading.Event()
        self.broken_off = threading.Event()
        self.go_on = threading.Event()
        """Without it a stream stops behind its first event, and a hanging request is never let go."""
        self.go_on.set()
        self._open: set[socket.socket] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self) -> CompletionsServer:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Stops at once: what is being answered is cut."""
        self.go_on.set()
        self.shutdown()
        self.server_close()
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def load(self, name: str, folder: str) -> None:
        called = f"{name} {len(self.loads)}"
        self.engine.load(called, folder)
        self.adapters[name] = (folder, called)
        self.loads.append(name)

    @contextmanager
    def busy(self, name: str) -> Iterator[None]:
        """Counts a request for an adapter in the metrics."""
        self._count(name, 1)
        try:
            yield
        finally:
            self._count(name, -1)

    def told_in_metrics(self) -> str:
        """The lines that are looked at, in vLLM's form: of the prefix cache and of adapters; "" where there are none."""
        cache, told = self.dialect.prefix_block, list[str]()
        if cache is not None:
            labels = f'block_size="{cache or 16}",enable_prefix_caching="{cache > 0}",engine="0"'
            told += ["# TYPE vllm:cache_config_info gauge", f"vllm:cache_config_info{{{labels}}} 1.0"]
        if self.dialect.adapters and self.dialect.metrics:
            told += self._of_adapters()
        return "".join(f"{line}\n" for line in told)

    def _of_adapters(self) -> list[str]:
        """A line stays there for each set of adapters that was ever busy."""
        lines = [
            f'vllm:lora_requests_info{{max_lora="2",running_lora_adapters="{names}",waiting_lora_adapters=""}} {at!r}'
            for names, at in self._seen_busy.items()
        ]
        return ["# TYPE vllm:lora_requests_info gauge", *lines]

    def _count(self, name: str, change: int) -> None:
        with self._counting:
            if name in self.adapters or self._busy[name]:
                self._busy[name] += change
                self._seen_busy[",".join(sorted(one for one, count in self._busy.items() if count))] = time.time()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone is no error of the server's."""


class _Handler(BaseHTTPRequestHandler):
    server: CompletionsServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.server.seen.append(self.path)
        if not self._may():
            return
        if self.path == "/metrics" and (told := self.server.told_in_metrics()):
            self._write(200, told, {"Content-Type": "text/plain"})
            return
        if self.path != "/v1/models" or not self.server.dialect.models:
            self._refuse(404, "Not Found")
            return
        window = self.server.engine.capabilities.window
        card = {"id": self.server.model, "object": "model", "root": self.server.root, "max_model_len": window}
        loaded = [
            {"id": name, "object": "model", "root": folder, "parent": self.server.model, "max_model_len": None}
            for name, (folder, _) in self.server.adapters.items()
        ]
        self._send(200, {"object": "list", "data": [{**card, "parent": None}, *loaded]})

    def do_POST(self) -> None:
        self.server.seen.append(self.path)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._may():
            return
        if self.path == "/tokenize" and self.server.dialect.tokenize:
            ids = self.server.tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"])["input_ids"]
            self._send(200, {"tokens": ids, "count": len(ids)})
        elif self.path == "/v1/completions":
            with self.server.busy(body["model"]):
                self._complete(body)
        elif self.path == "/v1/load_lora_adapter" and self.server.dialect.adapters:
            self._load(body["lora_name"], body["lora_path"])
        elif self.path == "/v1/unload_lora_adapter" and self.server.dialect.adapters:
            self._unload(body["lora_name"])
        else:
            self._refuse(404, "Not Found")

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def _may(self) -> bool:
        self.server.authorised.add(self.headers["Authorization"])
        if not self.server.key or self.headers["Authorization"] == f"Bearer {self.server.key}":
            return True
        # As OpenAI does, it repeats the key that it refuses.
        self._refuse(401, f"Incorrect API key provided: {self.headers['Authorization']}")
        return False

    def _load(self, name: str, folder: str) -> None:
        if self.server.refuses_loads:
            self._refuse(
                self.server.refuses_loads, "Call to add_lora method failed: rank 64 is greater than max_lora_rank 16"
            )
        elif name in self.server.adapters:
            self._refuse(400, f"The lora adapter '{name}' has already been loaded.")
        elif not (Path(folder) / "adapter_config.json").exists():
            self._refuse(404, f"Loading lora {name} failed: No adapter found for <path>")
        else:
            self.server.load(name, folder)
            self._write(200, f"Success: LoRA adapter '{name}' added successfully.", {})

    def _unload(self, name: str) -> None:
        if self.server.adapters.pop(name, None) is None:
            self._refuse(404, f"The lora adapter '{name}' cannot be found.")
        else:
            self._write(200, f"Success: LoRA adapter '{name}' removed successfully.", {})

    def _complete(self, body: _Json) -> None:
        self.server.asked.append(body)
        self.server.answering.set()
        fault = self.server.faults.popleft() if self.server.faults else self.server.always
        if fault is not None and not fault.cut:
            self._fail(fault)
            return
        if body["model"] != self.server.model and body["model"] not in self.server.adapters:
            self._refuse(404, f"The model `{body['model']}` does not exist.")
            return
        if self.server.dialect.stumbles and "logprob_token_ids" in body:
            self._refuse(500, "list index out of range")
            self.close_connection = True  # without a word of it, as vLLM does
            return
        if (wrong := self._refusal(body)) is not None:
            self._refuse(400, wrong)
            return
        answer = _Completion(self.server, body)
        if body.get("stream"):
            self._stream(answer, fault)
        else:
            self._send(200, answer.whole(), cut=fault is not None)

    def _refusal(self, body: _Json) -> str | None:
        dialect, prompt = self.server.dialect, body["prompt"]
        if unknown := sorted(body.keys() - OPENAI) if dialect.strict else []:
            return f"Unrecognized request arguments: {', '.join(unknown)}"
        if not dialect.ids_in and not isinstance(prompt, str):
            return "prompt must be a string"
        if (body.get("logprobs") or 0) > dialect.most_logprobs:
            return f"Requested more than {dialect.most_logprobs} logprobs"
        if body.get("stream") and not dialect.streams:
            return "stream is not supported"
        return None

    def _fail(self, fault: Fault) -> None:
        if fault.hang:
            self.server.go_on.clear()
            self.server.go_on.wait()
            self.close_connection = True
        elif fault.nonsense:
            self._write(200, "<html>It works!</html>", {"Content-Type": "text/html"})
        else:
            self._refuse(fault.status, fault.message, fault.retry_after)

    def _stream(self, answer: _Completion, fault: Fault | None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            for number, event in enumerate(answer.events()):
                if fault is not None and number == fault.events:
                    return
                self.wfile.write(f": alive\n\ndata: {json.dumps(event)}\n\n".encode())
                while not self.server.go_on.wait(0.01):
                    self.wfile.write(b": alive\n\n")
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.server.broken_off.set()

    def _refuse(self, status: int, message: str, retry_after: str = "") -> None:
        headers = {"Retry-After": retry_after} if retry_after else {}
        self._write(status, json.dumps({"error": {"message": message, "code": status}}), headers)

    def _send(self, status: int, said: object, *, cut: bool = False) -> None:
        self._write(status, json.dumps(said), {"Content-Type": "application/json"}, cut=cut)

    def _write(self, status: int, text: str, headers: dict[str, str], *, cut: bool = False) -> None:
        data = text.encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = cut


class _Completion:
    """One completion of the engine's, in the form of vLLM's API."""

    def __init__(self, server: CompletionsServer, body: _Json) -> None:
        self._server, self._body, self._dialect = server, body, server.dialect
        _, self._adapter = server.adapters.get(body["model"], ("", None))
        prompt = body["prompt"]
        self._prompt = tuple(server.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt)
        self._generation = self._generated()
        self._ids = self._with_end()

    def whole(self) -> _Json:
        choice = self._choice(self._ids, 0, self._finish)
        if self._dialect.prompt_logprobs and self._body.get("prompt_logprobs") is not None:
            choice["prompt_logprobs"] = self._read()
        usage = {"prompt_tokens": len(self._prompt), "completion_tokens": len(self._ids)}
        return {"object": "text_completion", "choices": [choice], "usage": usage}

    def events(self) -> Iterator[_Json]:
        for at, token in enumerate(self._ids):
            last = at == len(self._ids) - 1
            yield {"choices": [self._choice([token], at, self._finish if last else None)]}

    @property
    def _finish(self) -> str:
        return "length" if self._generation.finish == "length" else "stop"

    def _generated(self) -> Generation:
        vocabulary = len(self._server.tokenizer)
        request = Request(
            key="",
            prompt=self._prompt,
            max_new=self._body["max_tokens"],
            choices=tuple(range(vocabulary)),
            adapter=self._adapter,
            stop_ids=tuple(self._body.get("stop_token_ids") or ()),
        )
        return self._server.engine.submit([request])[0].result(60)

    def _with_end(self) -> list[int]:
        """The output with the token that ended it, as vLLM counts it in."""
        eos = self._server.tokenizer.eos_token_id
        stops = [token for token in self._body.get("stop_token_ids") or () if token != eos]
        end = {"eos": [eos], "stop": stops[:1]}.get(self._generation.finish, [])
        return [*self._generation.ids, *end]

    def _choice(self, ids: list[int], at: int, finish: str | None) -> _Json:
        said: _Json = {"index": 0, "text": self._text(ids), "finish_reason": finish}
        if self._dialect.ids_out == "token_ids" and self._body.get("return_token_ids"):
            said["token_ids"] = ids
        if self._body.get("logprobs") is not None:
            names = [self._name(token) for token in ids]
            top = [self._top() if at + place == 0 else {name: -0.5} for place, name in enumerate(names)]
            told = [one[name] for one, name in zip(top, names, strict=True)]
            said["logprobs"] = {"tokens": names, "token_logprobs": told, "top_logprobs": top}
        return said

    def _text(self, ids: list[int]) -> str:
        special = self._body.get("skip_special_tokens", True)
        return str(self._server.tokenizer.decode([i for i in ids if i not in self._ends], skip_special_tokens=special))

    @property
    def _ends(self) -> set[int]:
        return {self._server.tokenizer.eos_token_id, *(self._body.get("stop_token_ids") or ())}

    def _top(self) -> dict[str, float]:
        logprobs = self._generation.choice_logprobs
        likely = sorted(logprobs, key=lambda token: -logprobs[token])
        named = self._body.get("logprob_token_ids") if self._dialect.named else None
        chosen = [likely[0], *named] if named else likely[: self._body["logprobs"]]
        return {self._name(token): logprobs[token] for token in dict.fromkeys([*self._ids[:1], *chosen])}

    def _name(self, token: int) -> str:
        if self._body.get("return_tokens_as_token_ids") and self._dialect.written_as_ids:
            return f"token_id:{token}"
        return str(self._server.tokenizer.convert_ids_to_tokens(token))

    def _read(self) -> list[_Json | None]:
        first, *rest = self._prompt
        draft = Draft(ids=tuple(rest), spans=((0, 0),) * len(rest))
        request = Request(key="", prompt=(first,), draft=draft, score_draft=True, adapter=self._adapter)
        told = self._server.engine.submit([request])[0].result(60).draft_logprobs or ()
        return [None, *({str(token): {"logprob": value}} for token, value in zip(rest, told, strict=True))]
