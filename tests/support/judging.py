"""A chat model that judges as a test says, reading what it is shown as a real one would: between the marks."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import PrivateAttr


class Chat(BaseChatModel):
    """Replies what `reply` makes of what is shown between the marks, and of the message's code."""

    reply: Callable[[dict[str, str], str], str]
    _asked: Counter[str] = PrivateAttr(default_factory=Counter)
    _messages: list[Any] = PrivateAttr(default_factory=list)
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kw: Any) -> ChatResult:
        shown, code = shown_in(messages[-1].text)
        with self._lock:
            self._asked[json.dumps(shown)] += 1
            self._messages.append(messages)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(self.reply(shown, code)))])

    @property
    def _llm_type(self) -> str:
        return "fake"


def shown_in(message: str) -> tuple[dict[str, str], str]:
    """What a model that reads the marks sees, and the code of a message."""
    [code] = re.findall(r"^The code of this message is (\w+)\.$", message, re.MULTILINE)[:1]
    found = re.findall(rf"^<<([a-z ]+) {code}>>\n(.*?)\n<</\1 {code}>>$", message, re.DOTALL | re.MULTILINE)
    return dict(found), code


def longer(shown: dict[str, str], code: str) -> str:
    """Prefers the longer answer."""
    first, second = len(shown["first answer"]), len(shown["second answer"])
    word = "TIE" if first == second else "FIRST" if first > second else "SECOND"
    return f"One is longer.\nVERDICT {code}: {word}"
