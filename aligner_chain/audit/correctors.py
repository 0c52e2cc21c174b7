"""Whatever corrects answers, in one form: an Aligner, a function, a LangChain Runnable, and what understands nothing."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any

from aligner_chain.aligner import Aligner
from aligner_chain.errors import ConfigurationError
from aligner_chain.exchange import Correction, Exchange

Corrector = Callable[[Sequence[Exchange]], Sequence[str | Correction]]
"""Exchanges in, for each the text to serve out, or a correction that holds it, in the same order."""

REFUSAL = "I'm sorry, but I can't help with that."

_FORMS = (
    "A corrector is an Aligner, a function of (question, answer) or of one Exchange that returns a text, or a LangChain "
    'Runnable that takes {"question": ..., "answer": ...} and returns a text or a message.'
)


def copy(exchanges: Sequence[Exchange]) -> list[str]:
    """Leaves every answer as it is: it never does harm and never helps."""
    return [exchange.answer for exchange in exchanges]


def refuse(exchanges: Sequence[Exchange]) -> list[str]:
    """Refuses everything: nothing harmful is left, and nothing right."""
    return [REFUSAL] * len(exchanges)


NULLS: Mapping[str, Corrector] = MappingProxyType({"copy": copy, "refuse": refuse})
"""What every corrector has to stand beside."""


def corrector(value: object) -> Corrector:
    """Anything that corrects as a `Corrector`.

    An Aligner counts with what it serves, after its checks. A function of one argument is given the `Exchange`, one of
    two the last question and the answer, as a Runnable is.

    Raises:
        ConfigurationError: It is nothing that can be called so; the message lists what can.
    """
    if isinstance(value, Aligner):
        return _of_aligner(value)
    if hasattr(value, "invoke"):
        return _each(lambda one: value.invoke({"question": one.question, "answer": one.answer}))
    if not callable(value):
        raise ConfigurationError(f"{value!r:.80} is no corrector. {_FORMS}")
    if inspect.iscoroutinefunction(value):
        raise ConfigurationError(f"{value!r:.80} is a coroutine function, and an audit waits for nothing. {_FORMS}")
    return _each(value if _arguments(value) == 1 else lambda one: value(one.question, one.answer))


def load(target: str, opened: ExitStack) -> Corrector:
    """The corrector that a command line names: `package.module:attribute`, else the folder or hub id of an Aligner.

    Importing a module runs its code. Modules of the current folder are found, after those that are installed.

    Args:
        target: Its name.
        opened: Closes an Aligner that was loaded.

    Raises:
        ConfigurationError: There is none of that name, or it is no corrector.
    """
    if ":" in target and not Path(target).exists():
        return corrector(_imported(target))
    return corrector(opened.enter_context(closing(Aligner.from_pretrained(target))))


def _imported(target: str) -> object:
    module, _, attribute = target.partition(":")
    # Last, so that no file of the folder takes the place of a module that this package needs.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        found = importlib.import_module(module)
    except Exception as error:  # the module's own code runs, and may raise anything
        raise ConfigurationError(
            f"{target}: the module {module!r} cannot be imported ({type(error).__name__}: {error}).\n"
            "Run the command in the folder that holds the module, or install it."
        ) from error
    try:
        return attrgetter(attribute)(found)
    except AttributeError as error:
        public = ", ".join(name for name in vars(found) if not name.startswith("_")) or "nothing"
        raise ConfigurationError(f"{target}: {module} has no {attribute!r}. It holds {public}.") from error


def _of_aligner(aligner: Aligner) -> Corrector:
    return lambda exchanges: [one.raise_for_failure() for one in aligner.correct(exchanges)]


def _each(reply: Callable[[Exchange], object]) -> Corrector:
    return lambda exchanges: [_text(reply(exchange)) for exchange in exchanges]


def _text(reply: Any) -> str:
    """The text of a reply, or of a message of LangChain."""
    text = reply if isinstance(reply, str) else getattr(reply, "text", None)
    if not isinstance(text, str):
        raise TypeError(f"the corrector returned {type(reply).__name__}, neither a text nor a message")
    return str(text)


def _arguments(function: Callable[..., Any]) -> int:
    """How many arguments to give: 1 or 2."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some of C have none to show
        return 2
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [one for one in signature.parameters.values() if one.kind in positional and one.default is one.empty]
    count = 1 if len(needed) == 1 else 2
    try:
        signature.bind(*[None] * count)
    except TypeError as error:
        raise ConfigurationError(f"{function!r:.80} takes other arguments: {error}. {_FORMS}") from error
    return count
