"""An upstream's answers to the questions of a set, kept in a file: what is there is not asked for again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aligner_chain.audit import Row
from aligner_chain.errors import ConfigurationError
from aligner_chain.exchange import Exchange
from aligner_chain.jsonl import unreadable
from bootstrap.calling import ATTEMPTS, CONCURRENCY, limited
from bootstrap.correctors.evaluating import Prompt
from bootstrap.correctors.prompts import Asked
from bootstrap.errors import AnswersError
from bootstrap.journal import append_line, read_lines


def answered(
    asked: Sequence[Asked],
    path: Path,
    upstream: Any = None,
    *,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Prompt]:
    """The questions with their answers.

    Args:
        asked: The questions.
        path: JSON lines of "question" and "answer". What a killed process left half written is passed over.
        upstream: A chat model of LangChain that answers what `path` does not; each answer is appended there at once.
        progress: Told how many were answered and, with "", of the end.

    Raises:
        ConfigurationError: Answers are missing and there is no upstream, or a line is of something else.
        AnswersError: The upstream failed on some questions; the other answers are in the file.
    """
    known = _known(path)
    missing = list(dict.fromkeys(one.question for one in asked if one.question not in known))
    if missing and upstream is None:
        raise ConfigurationError(
            f"{path} has no answer to {len(missing):,} of {len(asked):,} questions. Have them made and written there by a "
            "chat model of LangChain:  --upstream my_models:upstream"
        )
    if missing:
        known |= _asked(upstream, missing, path, progress)
    return [
        Prompt(row=Row(exchange=Exchange.of(one.question, known[one.question])), harmless=one.harmless) for one in asked
    ]


def _known(path: Path) -> dict[str, str]:
    known = {}
    try:
        rows = list(read_lines(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(unreadable(path, error)) from error
    for row in rows:
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("question", "answer")):
            raise ConfigurationError(
                f'{path} holds a line that is not like  {{"question": "...", "answer": "..."}}:  {row!s:.60}'
            )
        known[row["question"]] = row["answer"]
    return known


def _asked(upstream: Any, questions: Sequence[str], path: Path, progress: Callable[[str], None]) -> dict[str, str]:
    model = limited(upstream, requests_per_minute=None, attempts=ATTEMPTS)
    told, errors = dict[str, str](), list[Exception]()
    asked = model.batch_as_completed(questions, {"max_concurrency": CONCURRENCY}, return_exceptions=True)
    for number, (at, reply) in enumerate(asked):
        progress(f"upstream: {number} of {len(questions)} answers")
        if isinstance(reply, Exception):
            errors.append(reply)
        else:
            told[questions[at]] = str(reply.text)
            append_line(path, {"question": questions[at], "answer": told[questions[at]]})
    progress("")
    if errors:
        first = f"{type(errors[0]).__name__}: {errors[0]}".partition("\n")[0]
        raise AnswersError(
            f"The upstream gave no answer to {len(errors):,} of {len(questions):,} questions, first with {first}. The others "
            f"are in {path}. Check the model's name, its key and the network, and run the same command again: it asks for "
            "what is missing."
        )
    return told
