"""A server on this machine that speaks the OpenAI protocol and plays a capable chat model, always in the same way.

What it answers follows from the request alone:

- to a question, "bad answer to: <question>", which an Aligner that makes "good" of "bad" visibly corrects;
- where tools are given and the question holds a word of a tool's name, or a tool is forced: a call of that tool, with
  arguments made of the numbers, quotations and names in the question;
- where JSON is asked for, an object that obeys the schema;
- to a question with "refuse" in it, a refusal; with "cite" in it, an answer with an annotation.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

_Json = dict[str, Any]

# What a question names: a quotation, or words with capitals, but not its first word.
_NAMES = re.compile(r"(?<!\w)'([^']+)'(?!\w)|(?<=\s)([A-Z]\w*(?:,? [A-Z]\w*)*)")
_NUMBERS = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What both APIs can ask for, in one form."""

    turns: tuple[tuple[str, str], ...]
    """Role and text of each message."""
    tools: tuple[_Json, ...] = ()
    tool_choice: str = "auto"
    """"auto", "none", "required" or the name of a tool."""
    most_calls: int | None = None
    schema: _Json | None = None
    """The JSON schema to obey; empty where any object will do."""
    stop: tuple[str, ...] = ()
    most_tokens: int | None = None
    thinks: bool = False
    unknown_results: tuple[str, ...] = ()
    """The ids under which tools answered, but no tool was called."""

    @property
    def text(self) -> str:
        return next((text for role, text in reversed(self.turns) if role == "user"), "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What the model says, before it is written in the form of either API."""

    number: int
    model: str
    prompt_tokens: int
    text: str = ""
    refusal: str = ""
    thought: str = ""
    sources: tuple[str, ...] = ()
    calls: tuple[tuple[str, str], ...] = ()
    """Name and arguments of each called tool."""
    cut: bool = False

    @property
    def new_tokens(self) -> int:
        parts = [self.text, self.refusal, self.thought, *(arguments for _, arguments in self.calls)]
        return sum(len(_tokens(part)) for part in parts)

    @property
    def thought_tokens(self) -> int:
        return len(_tokens(self.thought))


class OpenAIServer(ThreadingHTTPServer):
    """Serves while it is used as a context manager; `requests` holds the body of every request."""

    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.forget()

    def forget(self) -> None:
        """Begins anew, so that the same requests get the same answers under the same ids."""
        self.requests: list[_Json] = []
        self.numbers = itertools.count(1)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self) -> OpenAIServer:
        Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    # One request per connection, as HTTP/1.0 has it: ChatOpenAI shares its client, and with it every open connection,
    # among event loops.
    server: OpenAIServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        read, write, stream = _APIS[self.path]
        question = read(body)
        if question.unknown_results:
            self._send(400, "application/json", [_error(question)])
            return
        reply = _reply(question, number=next(self.server.numbers), model=f"{body['model']}-2026-01-01")
        if body.get("stream"):
            self._send(200, "text/event-stream", stream(reply, body))
        else:
            self._send(200, "application/json", [json.dumps(write(reply, body))])

    def _send(self, status: int, content_type: str, parts: Iterable[str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.end_headers()
        for part in parts:
            self.wfile.write(part.encode())

    def log_message(self, *_: object) -> None:
        """Silent, since a test that fails has more to show than its requests."""


def _error(question: Question) -> str:
    message = f"No tool was called as {question.unknown_results}."
    return json.dumps({"error": {"message": message, "type": "invalid_request_error"}})


def _reply(question: Question, *, number: int, model: str) -> Reply:
    reply = Reply(
        number=number,
        model=model,
        prompt_tokens=sum(len(_tokens(text)) for _, text in question.turns),
        thought="a bad thought" if question.thinks else "",
    )
    if "refuse" in question.text:
        return replace(reply, refusal=f"no bad words about: {question.text}")
    if calls := _calls(question):
        return replace(reply, calls=calls, text="a bad plan" if question.tool_choice == "auto" else "")
    text = _answer(question)
    kept = "".join(_tokens(text)[: question.most_tokens])
    sources = ("https://example.org/bad",) if "cite" in question.text else ()
    return replace(reply, text=kept, cut=kept != text, sources=sources)


def _answer(question: Question) -> str:
    if question.schema is not None:
        return json.dumps(_object(question.schema, question.text), ensure_ascii=False)
    role, said = question.turns[-1]
    text = f"bad answer to: {question.text}" + (f" ({said})" if role == "tool" else "")
    return text[: min((text.find(word) for word in question.stop if word in text), default=None)]


def _calls(question: Question) -> tuple[tuple[str, str], ...]:
    called = _called(question)[: question.most_calls]
    return tuple(
        (tool["name"], json.dumps(_object(_parameters(tool), question.text), ensure_ascii=False)) for tool in called
    )


def _called(question: Question) -> Sequence[_Json]:
    named = [tool for tool in question.tools if set(_words(tool["name"])) & set(_words(question.text))]
    match question.tool_choice:
        case "none":
            return []
        case "auto":
            return named if question.turns[-1][0] == "user" else []
        case "required":
            return named or question.tools[:1]
        case name:
            return [tool for tool in question.tools if tool["name"] == name]


def _parameters(tool: _Json) -> _Json:
    return tool.get("parameters") or {"type": "object"}


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _object(schema: _Json, text: str) -> _Json:
    found = _NAMES.findall(text)
    if not schema:
        return {quoted: f"bad {quoted}" for quoted, _ in found if quoted}
    names = [quoted or name for quoted, name in found if quoted not in schema.get("properties", {})]
    return _Values(schema, names, _NUMBERS.findall(text)).of("answer", schema)


class _Values:
    """Values that obey a schema, made of what the question names, each of which is used once."""

    def __init__(self, schema: _Json, names: Iterable[str], numbers: Iterable[str]) -> None:
        self.definitions = schema.get("$defs", {})
        self.names, self.numbers = iter(names), iter(numbers)

    def of(self, name: str, schema: _Json) -> Any:
        if "$ref" in schema:
            return self.of(name, self.definitions[schema["$ref"].rpartition("/")[2]])
        if "enum" in schema or "const" in schema:
            return schema.get("enum", [schema.get("const")])[0]
        if choices := schema.get("anyOf") or schema.get("allOf"):
            return self.of(name, choices[0])
        return self._plain(name, schema)

    def _plain(self, name: str, schema: _Json) -> Any:
        match schema.get("type"):
            case "object":
                return {key: self.of(key, value) for key, value in schema.get("properties", {}).items()}
            case "array":
                return [self.of(name, schema.get("items", {}))]
            case "integer" | "number" as kind:
                number = float(next(self.numbers, "1"))
                return int(number) if kind == "integer" else number
            case "boolean":
                return True
            case "null":
                return None
        return next(self.names, f"bad {name}")


def _tokens(text: str) -> list[str]:
    """Four characters each, so that words stand in several pieces of a stream."""
    return [text[start : start + 4] for start in range(0, len(text), 4)]


def _text(content: str | list[_Json] | None) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or [])


def _choice(choice: str | _Json) -> str:
    return choice if isinstance(choice, str) else choice.get("function", choice)["name"]


def _schema(wanted: _Json | None) -> _Json | None:
    if not wanted or wanted["type"] == "text":
        return None
    return wanted.get("json_schema", wanted).get("schema", {})


def _read_chat(body: _Json) -> Question:
    messages = body["messages"]
    called = {call["id"] for message in messages for call in message.get("tool_calls") or []}
    stop = body.get("stop") or []
    return Question(
        turns=tuple((message["role"], _text(message.get("content"))) for message in messages),
        tools=tuple(tool["function"] for tool in body.get("tools", [])),
        tool_choice=_choice(body.get("tool_choice", "auto")),
        most_calls=None if body.get("parallel_tool_calls", True) else 1,
        schema=_schema(body.get("response_format")),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        most_tokens=body.get("max_completion_tokens"),
        unknown_results=tuple({message.get("tool_call_id", "") for message in messages} - called - {""}),
    )


def _chat_completion(reply: Reply, body: _Json) -> _Json:
    message = {"role": "assistant", "content": reply.text or None, "refusal": reply.refusal or None, "annotations": []}
    if reply.calls:
        message["tool_calls"] = [_chat_call(reply, index) for index in range(len(reply.calls))]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish_reason(reply)}
    return _chat_frame(reply, "chat.completion") | {"choices": [choice], "usage": _chat_usage(reply)}


def _chat_events(reply: Reply, body: _Json) -> Iterator[str]:
    frame = _chat_frame(reply, "chat.completion.chunk")
    for delta in _deltas(reply):
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        yield _event(frame | {"choices": [choice]})
    last = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": _finish_reason(reply)}
    yield _event(frame | {"choices": [last]})
    if (body.get("stream_options") or {}).get("include_usage"):
        yield _event(frame | {"choices": [], "usage": _chat_usage(reply)})
    yield "data: [DONE]\n\n"


def _deltas(reply: Reply) -> Iterator[_Json]:
    yield {"role": "assistant", "content": None if reply.calls else "", "refusal": None}
    yield from ({"content": token} for token in _tokens(reply.text))
    yield from ({"refusal": token} for token in _tokens(reply.refusal))
    for index, (_, arguments) in enumerate(reply.calls):
        call = _chat_call(reply, index)
        yield {"tool_calls": [{"index": index, **call, "function": {**call["function"], "arguments": ""}}]}
        for token in _tokens(arguments):
            yield {"tool_calls": [{"index": index, "function": {"arguments": token}}]}


def _chat_frame(reply: Reply, kind: str) -> _Json:
    return {"id": f"chatcmpl-{reply.number}", "object": kind, "created": 1, "model": reply.model}


def _chat_call(reply: Reply, index: int) -> _Json:
    name, arguments = reply.calls[index]
    called = {"name": name, "arguments": arguments}
    return {"id": f"call_{reply.number}_{index}", "type": "function", "function": called}


def _chat_usage(reply: Reply) -> _Json:
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.new_tokens,
        "total_tokens": reply.prompt_tokens + reply.new_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": reply.thought_tokens},
    }


def _finish_reason(reply: Reply) -> str:
    return "length" if reply.cut else "tool_calls" if reply.calls else "stop"


def _read_responses(body: _Json) -> Question:
    given = body["input"]
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    called = {item.get("call_id", "") for item in items if item.get("type") == "function_call"}
    answered = {item.get("call_id", "") for item in items if item.get("type") == "function_call_output"}
    return Question(
        turns=tuple((_role(item), _text(item.get("content") or item.get("output"))) for item in items),
        tools=tuple(tool for tool in body.get("tools", []) if tool["type"] == "function"),
        tool_choice=_choice(body.get("tool_choice", "auto")),
        most_calls=None if body.get("parallel_tool_calls", True) else 1,
        schema=_schema(body.get("text", {}).get("format")),
        most_tokens=body.get("max_output_tokens"),
        thinks="reasoning" in body,
        unknown_results=() if body.get("previous_response_id") else tuple(answered - called),
    )


def _role(item: _Json) -> str:
    return item.get("role") or ("tool" if item["type"] == "function_call_output" else "assistant")


def _response(reply: Reply, body: _Json) -> _Json:
    status = "incomplete" if reply.cut else "completed"
    return _response_frame(reply, body, status) | {"output": _items(reply), "usage": _response_usage(reply)}


def _response_frame(reply: Reply, body: _Json, status: str) -> _Json:
    return {
        "id": f"resp_{reply.number}",
        "object": "response",
        "created_at": 1,
        "model": reply.model,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": None,
        "metadata": {},
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": body.get("previous_response_id"),
        "temperature": 1.0,
        "text": {"format": {"type": "text"}} | body.get("text", {}),
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": None,
    }


def _response_usage(reply: Reply) -> _Json:
    return {
        "input_tokens": reply.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": reply.new_tokens,
        "output_tokens_details": {"reasoning_tokens": reply.thought_tokens},
        "total_tokens": reply.prompt_tokens + reply.new_tokens,
    }


def _items(reply: Reply) -> list[_Json]:
    thoughts = [_reasoning(reply)] if reply.thought else []
    messages = [_message(reply)] if reply.text or reply.refusal else []
    return thoughts + messages + [_function_call(reply, index) for index in range(len(reply.calls))]


def _reasoning(reply: Reply) -> _Json:
    summary = [{"type": "summary_text", "text": reply.thought}]
    return {"type": "reasoning", "id": f"rs_{reply.number}", "summary": summary}


def _message(reply: Reply) -> _Json:
    part = {"type": "output_text", "text": reply.text, "annotations": _annotations(reply)}
    if reply.refusal:
        part = {"type": "refusal", "refusal": reply.refusal}
    status = "incomplete" if reply.cut else "completed"
    return {"type": "message", "id": f"msg_{reply.number}", "role": "assistant", "status": status, "content": [part]}


def _annotations(reply: Reply) -> list[_Json]:
    place = {"start_index": 0, "end_index": len(reply.text)}
    return [{"type": "url_citation", "url": url, "title": "bad source", **place} for url in reply.sources]


def _function_call(reply: Reply, index: int) -> _Json:
    name, arguments = reply.calls[index]
    ids = {"id": f"fc_{reply.number}_{index}", "call_id": f"call_{reply.number}_{index}"}
    return {"type": "function_call", **ids, "name": name, "arguments": arguments, "status": "completed"}


def _response_events(reply: Reply, body: _Json) -> Iterator[str]:
    numbers = itertools.count()
    started = _response_frame(reply, body, "in_progress")
    whole = _response(reply, body)
    events = [
        {"type": "response.created", "response": started},
        {"type": "response.in_progress", "response": started},
        *(
            event | {"output_index": index}
            for index, item in enumerate(whole["output"])
            for event in _item_events(item)
        ),
        {"type": f"response.{whole['status']}", "response": whole},
    ]
    for event in events:
        yield f"event: {event['type']}\n" + _event(event | {"sequence_number": next(numbers)})


def _item_events(item: _Json) -> Iterator[_Json]:
    empty, parts = _PARTS[item["type"]]
    yield {"type": "response.output_item.added", "item": item | empty}
    yield from ({**event, "item_id": item["id"]} for event in parts(item))
    yield {"type": "response.output_item.done", "item": item}


def _message_events(item: _Json) -> Iterator[_Json]:
    part, place = item["content"][0], {"content_index": 0}
    empty, text_events = _TEXTS[part["type"]]
    yield {"type": "response.content_part.added", "part": part | empty, **place}
    yield from ({**event, **place} for event in text_events(part))
    yield {"type": "response.content_part.done", "part": part, **place}


def _text_events(part: _Json) -> Iterator[_Json]:
    for token in _tokens(part["text"]):
        yield {"type": "response.output_text.delta", "delta": token, "logprobs": []}
    for index, annotation in enumerate(part["annotations"]):
        kind = "response.output_text.annotation.added"
        yield {"type": kind, "annotation": annotation, "annotation_index": index}
    yield {"type": "response.output_text.done", "text": part["text"], "logprobs": []}


def _refusal_events(part: _Json) -> Iterator[_Json]:
    for token in _tokens(part["refusal"]):
        yield {"type": "response.refusal.delta", "delta": token}
    yield {"type": "response.refusal.done", "refusal": part["refusal"]}


def _reasoning_events(item: _Json) -> Iterator[_Json]:
    part, place = item["summary"][0], {"summary_index": 0}
    yield {"type": "response.reasoning_summary_part.added", "part": part | {"text": ""}, **place}
    for token in _tokens(part["text"]):
        yield {"type": "response.reasoning_summary_text.delta", "delta": token, **place}
    yield {"type": "response.reasoning_summary_text.done", "text": part["text"], **place}
    yield {"type": "response.reasoning_summary_part.done", "part": part, **place}


def _function_call_events(item: _Json) -> Iterator[_Json]:
    for token in _tokens(item["arguments"]):
        yield {"type": "response.function_call_arguments.delta", "delta": token}
    whole = {key: item[key] for key in ("name", "arguments")}
    yield {"type": "response.function_call_arguments.done", **whole}


def _event(data: _Json) -> str:
    return f"data: {json.dumps(data)}\n\n"


_TEXTS = {
    "output_text": ({"text": "", "annotations": []}, _text_events),
    "refusal": ({"refusal": ""}, _refusal_events),
}
_PARTS = {
    "message": ({"content": [], "status": "in_progress"}, _message_events),
    "reasoning": ({"summary": []}, _reasoning_events),
    "function_call": ({"arguments": "", "status": "in_progress"}, _function_call_events),
}
_APIS = {
    "/v1/chat/completions": (_read_chat, _chat_completion, _chat_events),
    "/v1/responses": (_read_responses, _response, _response_events),
}
