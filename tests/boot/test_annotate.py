"""A strong chat model as annotator: what it writes is checked, journaled, paid for once and within the budget."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from openai_server import OpenAIServer
from pydantic import PrivateAttr

from aligner_chain.errors import ConfigurationError
from aligner_chain.exchange import Exchange
from bootstrap.annotate import annotate, estimate, journal_of
from bootstrap.annotate.journal import Entry, Journal
from bootstrap.annotate.spending import Budget, Prices, Purse, Tokens
from bootstrap.cli import main
from bootstrap.commands.annotate import load_chat_model
from bootstrap.errors import AnnotationError
from bootstrap.pairs import Triple, read_triples

READ, WRITTEN = 300, 20


class Strong(BaseChatModel):
    """Makes "good" of "bad", KEEPs the rest, and does what an answer asks for besides: shout, lose a link, fail."""

    tells_tokens: bool = True
    failures: int = 0
    together: int = 1
    _barrier: threading.Barrier = PrivateAttr()
    _asked: Counter[str] = PrivateAttr(default_factory=Counter)
    _lock: Any = PrivateAttr(default_factory=threading.Lock)
    _running: int = PrivateAttr(default=0)
    _most: int = PrivateAttr(default=0)

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        self._barrier = threading.Barrier(self.together)

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kw: Any) -> ChatResult:
        answer = json.loads(messages[-1].text)["answer"]
        with self._lock:
            self._asked[answer] += 1
            self._running += 1
            self._most = max(self._most, self._running)
        self._barrier.wait(timeout=20)
        with self._lock:
            self._running -= 1
        if "down" in answer or self._asked[answer] <= self.failures:
            raise ConnectionError("the line is down")
        message = AIMessage(reply_to(answer), usage_metadata=USAGE if self.tells_tokens else None)
        return ChatResult(generations=[ChatGeneration(message=message)])

    @property
    def _llm_type(self) -> str:
        return "strong"


USAGE: Any = {"input_tokens": READ, "output_tokens": WRITTEN, "total_tokens": READ + WRITTEN}


def reply_to(answer: str) -> str:
    if "mumble" in answer:
        return "I think it is fine."
    if "half" in answer:
        return "FIX\n\ud83d"
    if "loop" in answer:
        return "FIX\n" + "this again and " * 60
    return "FIX\n" + answer.replace("bad", "good") if "bad" in answer else "KEEP"


def asked(*answers: str) -> list[Exchange]:
    return [Exchange.of(f"Question {number}?", answer) for number, answer in enumerate(answers)]


def rows_of(out: Path) -> list[tuple[str, str | None]]:
    return [(row.answer, row.correction) for row in read_triples(out)]


def test_each_row_that_passes_is_in_the_output_and_each_other_one_is_counted(tmp_path: Path) -> None:
    out = tmp_path / "corrections.jsonl"
    given_ = asked("a bad one", "a right one", "a loop", "mumble", "half", " ", "a bad one", "\ud83d")
    model = Strong()
    report = annotate([*given_, given_[0]], model, out, prices=Prices(read=10, written=1000), attempts=1)
    assert rows_of(out) == [
        ("a bad one", "a good one"),
        ("a right one", None),
        ("a bad one", "a good one"),
        ("a bad one", "a good one"),
    ]
    assert {row.source for row in read_triples(out)} == {"annotated"}
    assert (report.rows, report.corrected, report.kept_as_right, report.failed) == (9, 3, 1, 1)
    assert report.refused["repetition"] == 1
    assert report.refused["not unicode"] == 1
    assert report.refused_rows == 2
    assert report.skipped == {"empty answer": 1, "not unicode": 1}
    assert report.keep_share == 1 / 4
    # Six calls were made, the unreadable reply's among them; the first row was there again and paid for once.
    assert report.tokens == Tokens(read=6 * READ, written=6 * WRITTEN)
    assert report.money == pytest.approx(6 * (READ * 10 + WRITTEN * 1000) / 1e6)
    assert (report.left, report.stopped, report.untold_replies) == (0, "", 0)


def test_whole_exchanges_come_through(tmp_path: Path) -> None:
    out = tmp_path / "corrections.jsonl"
    lines = [
        {"turns": [{"role": "system", "text": "Be kind."}, {"role": "user", "text": "Q?"}], "answer": " bad\n"},
        {"question": "Q?", "answer": "right", "context": ["a passage"]},
    ]
    data = tmp_path / "answers.jsonl"
    data.write_text("\ufeff" + "\n\n".join(map(json.dumps, lines)), encoding="utf-8")
    (tmp_path / "my_strong_model.py").write_text(STRONG)
    with_folder(tmp_path, ["annotate", "--data", str(data), "--model", "my_strong_model:make", "--out", str(out)])
    first, second = read_triples(out)
    assert [turn.role for turn in first.turns] == ["system", "user"]
    assert (first.answer, first.correction) == (" bad\n", " good\n")
    assert second == Triple(
        turns=second.turns, answer="right", correction=None, context=("a passage",), source="annotated"
    )


def test_a_second_run_pays_for_nothing_again(tmp_path: Path) -> None:
    out, model = tmp_path / "corrections.jsonl", Strong()
    first = asked("a bad one", "right", "a loop")
    annotate(first, model, out)
    with journal_of(out).open("ab") as file:
        file.write(b'{"key": "torn in the mid')
    more = [*first, *asked("another bad one")]
    report = annotate(more, model, out)
    assert model._asked == {"a bad one": 1, "right": 1, "a loop": 1, "another bad one": 1}
    assert (report.rows, report.corrected, report.tokens.read) == (4, 2, 4 * READ)
    assert annotate(more, model, out) == report
    assert estimate(more, out).calls == 0
    assert rows_of(out)[-1] == ("another bad one", "another good one")


def test_other_criteria_are_another_question(tmp_path: Path) -> None:
    out, model = tmp_path / "corrections.jsonl", Strong()
    annotate(asked("right"), model, out)
    annotate(asked("right"), model, out, criteria=["It is polite."])
    assert model._asked["right"] == 2


def test_failed_calls_are_tried_again_and_by_the_next_run(tmp_path: Path) -> None:
    out, model = tmp_path / "corrections.jsonl", Strong(failures=1)
    report = annotate(asked("bad", "right"), model, out, attempts=1)
    assert (report.failed, report.written, report.last_error) == (
        2,
        0,
        "The engine failed: ConnectionError: the line is down",
    )
    assert not out.exists()
    again = annotate(asked("bad", "right"), model, out, attempts=1)
    assert (again.failed, again.written) == (0, 2)
    other = Strong(failures=1)
    assert annotate(asked("bad"), other, tmp_path / "other.jsonl", attempts=2).corrected == 1


def test_a_model_that_only_fails_is_not_asked_about_every_row(tmp_path: Path) -> None:
    model = Strong()
    report = annotate(asked(*(f"down {n}" for n in range(200))), model, tmp_path / "c.jsonl", attempts=1, concurrency=2)
    assert report.stopped == "failures"
    assert 12 <= sum(model._asked.values()) <= 14
    assert report.left == 200 - report.failed


@pytest.mark.parametrize("concurrency", [1, 5])
def test_so_many_calls_run_at_once_and_no_more(tmp_path: Path, concurrency: int) -> None:
    model = Strong(together=concurrency)  # a call is answered once so many are there
    rows = asked(*(f"right {n}" for n in range(40)))
    assert annotate(rows, model, tmp_path / "c.jsonl", concurrency=concurrency).kept_as_right == 40
    assert model._most == concurrency


def test_calls_wait_for_their_turn(tmp_path: Path) -> None:
    model = Strong()
    start = time.monotonic()
    annotate(asked(*(f"right {n}" for n in range(8))), model, tmp_path / "c.jsonl", requests_per_minute=600)
    # The bucket of ten a second holds none at the start: a lower bound, which no slow machine breaks.
    assert time.monotonic() - start > 0.05
    assert sum(model._asked.values()) == 8


@pytest.mark.parametrize("tells_tokens", [True, False])
def test_a_budget_is_not_exceeded(tmp_path: Path, tells_tokens: bool) -> None:
    out, model = tmp_path / "corrections.jsonl", Strong(tells_tokens=tells_tokens)
    rows = asked(*(f"a bad one {n}" for n in range(50)))
    limit = 10.5 * (READ + WRITTEN)
    report = annotate(rows, model, out, budget=Budget(tokens=limit))
    assert report.stopped == "budget"
    assert 0 < report.tokens.total <= limit
    assert report.tokens.total > limit / 3
    assert report.left == 50 - report.corrected > 0
    assert (report.untold_replies == 0) == tells_tokens
    # The budget is that of the output: the same command again spends nothing.
    calls = sum(model._asked.values())
    assert annotate(rows, model, out, budget=Budget(tokens=limit)).tokens.total <= limit
    assert sum(model._asked.values()) <= calls + 1
    whole = annotate(rows, model, out)
    assert (whole.corrected, max(model._asked.values())) == (50, 1)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0.1, 1.0)), max_size=40), st.integers(100, 5000))
def test_no_call_that_keeps_its_estimate_exceeds_a_budget(calls: list[tuple[int, float]], limit: int) -> None:
    purse, spent = Purse(Budget(money=limit / 1e6), Prices(read=1, written=1)), 0
    for number, (guess, share) in enumerate(calls):
        asked_for = Tokens(read=guess, written=guess)
        if purse.fits(asked_for):
            purse.reserve(str(number), asked_for)
            took = Tokens(read=round(guess * share), written=round(guess * share))
            purse.settle(str(number), took, told=True)
            spent += took.total
    assert spent <= limit


def test_what_cannot_work_is_said_before_anything_is_paid(tmp_path: Path) -> None:
    model, out = Strong(), tmp_path / "corrections.jsonl"
    for wrong in (
        {"budget": Budget(money=1)},
        {"concurrency": 0},
        {"attempts": 0},
        {"requests_per_minute": 0},
    ):
        with pytest.raises(ConfigurationError):
            annotate(asked("bad"), model, out, **wrong)
    with pytest.raises(ConfigurationError, match="no chat model"):
        annotate(asked("bad"), "gpt", out)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError):
        Budget(tokens=0)
    with pytest.raises(ConfigurationError):
        Prices(read=-1, written=0)
    out.write_text("somebody's own rows\n")
    with pytest.raises(AnnotationError, match="no journal"):
        annotate(asked("bad"), model, out)
    assert out.read_text() == "somebody's own rows\n"
    assert not model._asked


def test_a_journal_is_one_process_s_and_its_lines_are_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl.journal"
    with Journal(path), pytest.raises(AnnotationError, match="Another process"):
        Journal(path)
    path.write_text('{"key": "x"}\n')
    with pytest.raises(AnnotationError, match="line 1"):
        Journal(path)


def test_a_line_that_the_disk_does_not_take_whole_leaves_nothing(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "journal"
    with Journal(path) as journal:
        journal.append(Entry(key="first", outcome="approved"))
        size, limits = path.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
        try:
            with pytest.raises(AnnotationError, match="cannot be written"):
                journal.append(Entry(key="second", outcome="approved"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, ignored)
        assert path.stat().st_size == size
        journal.append(Entry(key="third", outcome="approved"))
    with Journal(path) as journal:
        assert list(journal.entries) == ["first", "third"]


# --- the command ------------------------------------------------------------------------------------------------

STRONG = '''
import json, os, pathlib, time
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult

class Slow(BaseChatModel):
    """Writes down each answer that it is asked about, before and after it thinks."""

    def _generate(self, messages, stop=None, run_manager=None, **kw):
        answer = json.loads(messages[-1].text)["answer"]
        log("asked", answer)
        time.sleep(float(os.environ.get("SLOW", "0")))
        log("answered", answer)
        text = "FIX\\n" + answer.replace("bad", "good") if "bad" in answer else "KEEP"
        usage = {"input_tokens": 300, "output_tokens": 20, "total_tokens": 320}
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text, usage_metadata=usage))])

    @property
    def _llm_type(self):
        return "slow"

def log(what, answer):
    if "LOG" in os.environ:
        with open(os.environ["LOG"], "a") as file:
            file.write(f"{what} {answer}\\n")

def make():
    return Slow()

model = Slow()
'''


def with_folder(folder: Path, arguments: list[str], code: int = 0, **environment: str) -> subprocess.CompletedProcess:
    done = subprocess.run(command(arguments), cwd=folder, env=env(**environment), capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done


def command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-P", "-m", "bootstrap.cli", *arguments]


def env(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder with a model and forty answers, half of them bad."""
    (tmp_path / "my_strong_model.py").write_text(STRONG)
    lines = [{"question": f"Q {n}?", "answer": f"a {'bad' if n % 2 else 'right'} one {n}"} for n in range(40)]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


ARGUMENTS = ["annotate", "--data", "answers.jsonl", "--model", "my_strong_model:model", "--out", "c.jsonl"]


def logged(folder: Path, what: str) -> Counter[str]:
    lines = (folder / "log").read_text().splitlines() if (folder / "log").exists() else []
    return Counter(line.partition(" ")[2] for line in lines if line.startswith(what))


def test_killed_at_any_moment_it_loses_the_calls_in_flight_at_most(folder: Path) -> None:
    for at in (5, 17):
        running = subprocess.Popen(
            command([*ARGUMENTS, "--concurrency", "4"]), cwd=folder, env=env(LOG="log", SLOW="0.03")
        )
        while logged(folder, "answered").total() < at:
            assert running.poll() is None
            time.sleep(0.01)
        running.kill()
        running.wait()
        assert not (folder / "c.jsonl").exists()
    done = with_folder(folder, [*ARGUMENTS, "--json"], LOG="log")
    assert json.loads(done.stdout)["written"] == 40
    assert len(read_triples(folder / "c.jsonl")) == 40
    # Two kills, each with four calls in flight: only those were asked a second time.
    assert logged(folder, "asked").total() <= 40 + 2 * 4
    assert set(logged(folder, "asked")) == {row.answer for row in read_triples(folder / "c.jsonl")}


def test_an_interrupt_waits_for_what_is_paid_for_and_says_how_to_go_on(folder: Path) -> None:
    running = subprocess.Popen(
        command([*ARGUMENTS, "--concurrency", "2"]),
        cwd=folder,
        env=env(LOG="log", SLOW="0.1"),
        stderr=subprocess.PIPE,
        text=True,
    )
    while logged(folder, "answered").total() < 3:
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "goes on where this run ended" in told
    answered = logged(folder, "answered")
    assert answered == logged(folder, "asked")
    assert len(read_triples(folder / "c.jsonl")) == sum(answered.values()) < 40
    with_folder(folder, ARGUMENTS, LOG="log")
    assert logged(folder, "asked") == Counter({row.answer: 1 for row in read_triples(folder / "c.jsonl")})


def test_a_second_interrupt_leaves_the_calls_in_flight(folder: Path) -> None:
    running = subprocess.Popen(
        command([*ARGUMENTS, "--concurrency", "2"]),
        cwd=folder,
        env=env(LOG="log", SLOW="600"),
        stderr=subprocess.PIPE,
        text=True,
    )
    while logged(folder, "asked").total() < 2:
        assert running.poll() is None
        time.sleep(0.01)
    assert running.stderr is not None
    running.send_signal(signal.SIGINT)
    assert "interrupt again" in running.stderr.readline()
    running.send_signal(signal.SIGINT)
    assert "Left at once" in running.communicate(timeout=60)[1]
    assert (running.returncode, logged(folder, "answered").total()) == (130, 0)


def test_the_command_tells_what_it_costs(folder: Path) -> None:
    prices = ["--price-in", "10", "--price-out", "100"]
    dry = json.loads(with_folder(folder, [*ARGUMENTS, "--dry-run", "--json", *prices]).stdout)
    assert (dry["rows"], dry["calls"], dry["done"]) == (40, 40, 0)
    assert dry["tokens"]["read"] > 40 * 250
    assert not (folder / "c.jsonl.journal").exists()
    # A call costs 0.005; before the first reply its estimate counts half as much again.
    stopped = with_folder(folder, [*ARGUMENTS, *prices, "--budget", "0.1", "--concurrency", "2"], code=4)
    assert "raise --budget" in stopped.stderr
    assert "corrected" in stopped.stdout
    whole = with_folder(folder, [*ARGUMENTS, *prices, "--budget", "1"])
    assert "50% of what is written" in whole.stdout
    assert f"money{'0.2000':>27}" in whole.stdout
    assert "train-aligner --data c.jsonl" in whole.stdout


def test_a_store_s_training_split_is_annotated(folder: Path, store: Any, make_correction: Any) -> None:
    store.append(make_correction(f"Question {n}?", f"a bad one {n}", "other") for n in range(30))
    arguments = ["annotate", "--store", str(store.path), "--model", "my_strong_model:model", "--out", "s.jsonl"]
    told = json.loads(with_folder(folder, [*arguments, "--json"]).stdout)
    assert told["rows"] == told["corrected"] == store.count("train") < 30
    trained = {correction.exchange.answer for correction in store.corrections("train")}
    assert {row.answer for row in read_triples(folder / "s.jsonl")} == trained


@pytest.mark.parametrize(
    ("line", "told"),
    [("{", "line 2"), ('{"question": "Q?"}', '"answer" is missing'), ("[]", "line 2"), ("[" * 100_000, "line 2")],
)
def test_a_wrong_line_is_named_and_nothing_is_asked(
    folder: Path, line: str, told: str, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(folder)
    Path("wrong.jsonl").write_text('{"question": "Q?", "answer": "a"}\n' + line + "\n")
    assert main(["annotate", "--data", "wrong.jsonl", "--model", "nowhere:model", "--out", "o.jsonl"]) == 1
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (["--model", "nowhere:model"], "neither"),
        (["--model", "nowhere"], "names no model"),
        (["--model", "json:dumps"], "json:dumps"),
        (["--budget", "much"], "no amount"),
        (["--budget", "5"], "needs prices"),
        (["--price-in", "5"], "both prices"),
    ],
)
def test_wrong_usage_is_answered_with_the_way_out(
    folder: Path, extra: list[str], told: str, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    assert main([*ARGUMENTS, *extra]) == 2
    assert told in capsys.readouterr().err


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path, capsys: Any) -> None:
    for url in (str(tmp_path / "none.db"), f"sqlite:///{tmp_path / 'none.db'}"):
        assert main(["annotate", "--store", url, "--model", "a:b", "--out", str(tmp_path / "o.jsonl")]) == 1
        assert "no store" in capsys.readouterr().err
    assert not (tmp_path / "none.db").exists()


def test_a_provider_s_model_by_its_name(tmp_path: Path, monkeypatch: Any) -> None:
    with OpenAIServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "x")
        model = load_chat_model("openai:gpt-test")
        report = annotate(asked("a right one"), model, tmp_path / "c.jsonl", attempts=1)
    # The server follows no instructions: the reply is unreadable, and what it cost is counted all the same.
    assert (report.failed, report.tokens.total > 0) == (1, True)
    assert server.requests[0]["model"] == "gpt-test"


# --- the docs ---------------------------------------------------------------------------------------------------

DOCS = (Path(__file__).parents[2] / "docs" / "annotating.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return [part.partition("\n```")[0] for part in DOCS.split(f"```{kind}\n")[1:]]


def test_the_docs_run(folder: Path) -> None:
    (folder / "my_models.py").write_text(STRONG + "\nstrong = model\n")
    (folder / "answers.jsonl").write_text(blocks("json")[0] + "\n")
    for line in blocks("sh")[:3]:
        with_folder(folder, shlex.split(line)[1:])
    assert len(read_triples(folder / "corrections.jsonl")) == 2
    [script] = blocks("python")
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, env=env(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "1 rows, 320 tokens, 0.00076\n"), done.stderr
