"""How a chat model is asked for verdicts: many at once, each paid for once, what cannot be read asked once more."""

from __future__ import annotations

import contextvars
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from aligner_chain.engines.chat import TAGS
from bootstrap.calling import limited
from bootstrap.errors import JudgeError

if TYPE_CHECKING:
    from langchain_core.runnables import Runnable

    from bootstrap.judges.cache import Judgements

OnError = Literal["raise", "tie"]

TRIES = 2
"""How often a model is asked whose reply cannot be read."""
LONGEST_REASON = 500
"""Characters that are kept of what a model says before its verdict."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a model said: `value` in the words of its question, "" where it could not be read; `reason` as it came.

    A verdict that was known before has no reason: only its value is kept.
    """

    value: str
    reason: str = ""


class Question(Protocol):
    """One question to the model."""

    @property
    def key(self) -> str:
        """The hash of all that the model is shown, but for the code that is new in each call."""

    def messages(self, code: str) -> list[tuple[str, str]]:
        """The roles and texts of the call; `code` is in each mark around a text."""

    def read(self, reply: str, code: str) -> Verdict | None:
        """The verdict in a reply, None where there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What judging took and how far it can be trusted, since the judge was made.

    `calls` were made, `cached` verdicts known before. Of all verdicts `unreadable` ones could not be read in two tries
    and `failed` ones got no reply. Of `pairs` of answers, `contradicted` ones got another winner when the answers changed places; in
    `toward_first` of these the one shown first won both times.
    """

    calls: int = 0
    cached: int = 0
    unreadable: int = 0
    failed: int = 0
    pairs: int = 0
    contradicted: int = 0
    toward_first: int = 0

    @property
    def position_bias(self) -> float | None:
        """The share of pairs whose winner depended on the order, 0 to 1; None before there was a pair."""
        return self.contradicted / self.pairs if self.pairs else None

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {**asdict(self), "position_bias": self.position_bias}


class Asker:
    """Asks a chat model questions. Threads may share it.

    Args:
        chat_model: any chat model of LangChain.
        identity: what the model is called in the cache.
        new_code: makes the code of a call, which nobody can foresee.
        cache: where verdicts are kept, opened when something is asked; None remembers them in this object only.
        requests_per_minute: the most calls in a minute, retries among them; None: as many as come.
        concurrency: calls in flight at once; so many replies at most are lost by a kill.
        attempts: times that a call is tried, with growing pauses.
        on_error: what a call does that fails for good: raise, or count as a tie.
    """

    def __init__(
        self,
        chat_model: Runnable[Any, Any],
        identity: str,
        *,
        new_code: Callable[[], str],
        cache: str | os.PathLike[str] | None,
        requests_per_minute: float | None,
        concurrency: int,
        attempts: int,
        on_error: OnError,
    ) -> None:
        self._model = limited(chat_model, requests_per_minute=requests_per_minute, attempts=attempts)
        self._identity, self._new_code = identity, new_code
        self._cache, self._concurrency, self._on_error = cache, concurrency, on_error
        self._opened: Judgements | None = None
        self._known: dict[str, Verdict] = {}
        self._counter: Counter[str] = Counter()
        self._changing = threading.Lock()

    @property
    def counts(self) -> Counts:
        """What it took so far."""
        with self._changing:
            return Counts(**self._counter)

    def count(self, **numbers: int) -> None:
        """Adds to the counts."""
        with self._changing:
            self._counter.update(numbers)

    def ask(self, questions: Sequence[Question]) -> list[Verdict]:
        """A verdict for each question, in their order; the same question is asked once.

        Raises:
            JudgeError: a call failed, and `on_error` is "raise". What others said is kept.
        """
        asked = {question.key: question for question in questions}
        known = self._look_up(asked)
        self.count(cached=len(known))
        new = [question for key, question in asked.items() if key not in known]
        known |= self._ask_all(new) if new else {}
        return [known[question.key] for question in questions]

    def _look_up(self, keys: dict[str, Question]) -> dict[str, Verdict]:
        known = {key: self._known[key] for key in keys if key in self._known}
        if judgements := self._judgements():
            missing = [key for key in keys if key not in known]
            known |= {key: Verdict(value=value) for key, value in judgements.of(missing).items()}
        return known

    def _ask_all(self, questions: Sequence[Question]) -> dict[str, Verdict]:
        pool = ThreadPoolExecutor(min(self._concurrency, len(questions)), thread_name_prefix="judge")
        try:
            # The caller's context goes along, so that the model's spans belong to the caller's trace.
            running = [pool.submit(contextvars.copy_context().run, self._ask, question) for question in questions]
            said = {question.key: call.result() for question, call in zip(questions, running, strict=True)}
        finally:
            # Calls in flight are paid for and waited for; those behind them are not begun.
            pool.shutdown(cancel_futures=True)
        return self._agreed(said)

    def _judgements(self) -> Judgements | None:
        """What was said before, where it is kept."""
        if self._cache is None:
            return None
        from bootstrap.judges.cache import Judgements

        with self._changing:
            if self._opened is None:
                self._opened = Judgements(self._cache)
            return self._opened

    def _ask(self, question: Question) -> Verdict:
        verdict: Verdict | None = None
        for _ in range(TRIES):
            code = self._new_code()
            self.count(calls=1)
            try:
                reply = self._model.invoke(question.messages(code), config={"tags": list(TAGS)})
            except Exception as error:  # a provider raises anything
                if self._on_error == "raise":
                    raise JudgeError(_failed(self._identity, error, kept=self._cache is not None)) from error
                self.count(failed=1)
                return Verdict(value="")
            if verdict := question.read(str(reply.text), code):
                break
        self.count(unreadable=verdict is None)
        return self._keep(question.key, verdict or Verdict(value=""))

    def _keep(self, key: str, verdict: Verdict) -> Verdict:
        with self._changing:
            self._known[key] = verdict
        if judgements := self._judgements():
            judgements.add(self._identity, {key: verdict.value})
        return verdict

    def _agreed(self, said: dict[str, Verdict]) -> dict[str, Verdict]:
        """What counts: where another process was quicker with a question, what that one was told."""
        judgements = self._judgements()
        others = judgements.of(said) if judgements else {}
        other = {key: Verdict(value=value) for key, value in others.items() if value != said[key].value}
        with self._changing:
            self._known |= other
        return said | other


def _failed(identity: str, error: Exception, *, kept: bool) -> str:
    rest = "What was said before is kept" if kept else "Give cache=, so that what was said is kept"
    return (
        f"The judge {identity} gave no reply: {type(error).__name__}: {error}. Check the model's name, its key and the "
        f"network, and run it again. {rest}. If it is single prompts that the provider refuses, count them as ties with "
        'on_error="tie".'
    )
