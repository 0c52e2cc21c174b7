"""What is reviewed and in which order, how it is shown, and the page itself in a real browser."""

from __future__ import annotations

import dataclasses
import html.parser
import http.client
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aligner_chain.errors import ConfigurationError
from aligner_chain.exchange import Finding, Turn
from bootstrap.cli import main
from bootstrap.errors import RecordError
from bootstrap.records import Feedback, Record, split_of
from bootstrap.review import Progress, ReviewQueue, Sitting, showing
from bootstrap.store import CorrectionStore

HOSTILE = (
    "<script>window.hacked = 1</script><img src=http://evil.example/x onerror='window.hacked = 1'> {{7*7}} "
    "${window.hacked = 1} `${1}` $\\href{javascript:alert(1)}{x}$ $$x$$ [click](http://evil.example/) "
    "![](http://evil.example/y.png) </textarea><b>bold</b> &lt;i&gt; \\u003cb>"
)
UNSEEN = "\u202egnp.exe\u202c \0 \ud800 \u200b \x1b[31m \U000e0041"
TRAIN = next(f"key-{n}" for n in range(99) if split_of((), f"key-{n}") == "train")
HELD_OUT = next(f"key-{n}" for n in range(99) if split_of((), f"key-{n}") == "gate")


@pytest.fixture
def correct(make_correction):
    """As `make_correction`, in the training split."""

    def correction(question, *texts, split_key=TRAIN, criteria=(), **fields):
        made = make_correction(question, *texts, split_key=split_key, **fields)
        return dataclasses.replace(made, criteria=criteria)

    return correction


def decisions(store: CorrectionStore) -> dict[str, list[object]]:
    return {
        one.correction.exchange.question: [said.value for said in one.feedback]
        for one in store.records(feedback=True)
        if one.feedback
    }


def asked(sitting: Sitting) -> str | None:
    return sitting.record and sitting.record.correction.exchange.question


def walk(queue: ReviewQueue) -> list[str]:
    found = []
    while record := queue.take():
        found.append(record.correction.exchange.question)
    return found


# --- the queue -----------------------------------------------------------------------------------------------------


def test_the_newest_come_first_and_only_what_was_asked_for(any_store, correct, monkeypatch):
    monkeypatch.setattr("bootstrap.store._PAGE", 2)
    any_store.append(
        [
            correct("old"),
            correct("approved", "same", "same"),
            correct("named", criteria=("tone",)),
            correct("held out", split_key=HELD_OUT),
            correct("new", criteria=("fact", "tone")),
        ]
    )
    assert walk(ReviewQueue(any_store)) == ["new", "named", "old"]
    assert walk(ReviewQueue(any_store, outcome=None)) == ["new", "named", "approved", "old"]
    assert walk(ReviewQueue(any_store, criterion="tone", limit=1)) == ["new"]
    assert walk(ReviewQueue(any_store, split="gate")) == ["held out"]
    any_store.add_feedback(
        [
            Feedback(kind="review", value=False, correction_id="000000"),
            Feedback(kind="edit", value="x", correction_id="000002"),
            Feedback(kind="thumb", value=True, correction_id="000004"),
        ]
    )
    assert walk(ReviewQueue(any_store)) == ["new"]
    assert walk(ReviewQueue(any_store, unreviewed=False)) == ["new", "named", "old"]
    with pytest.raises(ValueError, match="limit"):
        ReviewQueue(any_store, limit=0)


def test_every_decision_is_written_at_once_with_its_author(store, correct):
    store.append(map(correct, "abcd"))
    sitting = Sitting(ReviewQueue(store), "ann")
    sitting.accept()
    assert decisions(store) == {"d": [True]}
    sitting.reject()
    sitting.forward()
    sitting.edit("better")
    assert sitting.record is None
    assert decisions(store) == {"d": [True], "c": [False], "a": ["better"]}
    assert {said.author for one in store.records(feedback=True) for said in one.feedback} == {"ann"}
    assert sitting.queue.progress == Progress(total=4, accepted=1, rejected=1, edited=1)
    sitting.accept()  # about nothing
    assert store.feedback_count() == 3


def test_the_way_back_is_a_new_decision_that_takes_the_place_of_the_old(store, correct):
    store.append(map(correct, "ab"))
    sitting = Sitting(ReviewQueue(store))
    assert sitting.is_first
    sitting.back()
    sitting.edit("mine")
    sitting.back()
    assert (asked(sitting), sitting.text) == ("b", "mine")
    assert sitting.record.decision.value == "mine"
    sitting.reject()
    assert asked(sitting) == "a"
    sitting.accept()
    assert sitting.queue.progress == Progress(total=2, accepted=1, rejected=1)
    assert store.get("000001").decision.value is False
    assert decisions(store) == {"b": ["mine", False], "a": [True]}
    sitting.back()
    assert asked(sitting) == "a"


def test_a_decision_outdoes_one_of_a_clock_that_runs_ahead(store, correct):
    store.append([correct("a")])
    store.add_feedback([Feedback(kind="review", value=True, correction_id="000000", at_ms=10**15)])
    Sitting(ReviewQueue(store, unreviewed=False)).reject()
    assert store.get("000000").decision.value is False


def test_nobody_is_given_what_somebody_else_looks_at(store, correct):
    store.append(map(correct, "abcd"))
    queue = ReviewQueue(store)
    one, other = Sitting(queue), Sitting(queue)
    assert (asked(one), asked(other)) == ("d", "c")
    one.forward()
    one.accept()
    assert (asked(one), asked(other)) == ("a", "c")
    one.close()
    other.accept()
    assert asked(other) == "d"  # skipped by the one who left
    other.accept()
    assert asked(other) == "a"
    assert queue.progress == Progress(total=4, accepted=3)


def test_what_was_deleted_or_decided_elsewhere_is_left_out(store, correct):
    store.append(map(correct, "abcde"))
    sitting = Sitting(ReviewQueue(store))
    sitting.forward()
    sitting.forward()
    store.delete(ids=["000003", "000001"])  # d, behind, and b, ahead
    store.add_feedback([Feedback(kind="review", value=True, correction_id="000000")])
    sitting.back()
    assert asked(sitting) == "e"
    sitting.forward()
    assert asked(sitting) == "c"
    store.delete(ids=["000002"])
    with pytest.raises(RecordError, match="deleted meanwhile"):
        sitting.accept()
    sitting.forward()
    assert sitting.record is None
    assert sitting.queue.progress == Progress(total=3)
    sitting.back()
    assert asked(sitting) == "e"


def test_an_edit_must_change_something_and_say_something(store, correct):
    store.append([correct("q", "bad", "two\r\nlines \ud800 \0")])
    sitting = Sitting(ReviewQueue(store))
    assert sitting.text == "two\nlines � �"
    for text, problem in (("two\nlines � �", "as it was"), ("two\r\nlines � �", "as it was"), (" \n", "not empty")):
        with pytest.raises(RecordError, match=problem):
            sitting.edit(text)
    assert store.feedback_count() == 0
    assert asked(sitting) == "q"


def test_edits_are_redacted_before_they_are_written(store, correct):
    store.append([correct("q")])

    def redact(said: Feedback) -> Feedback:
        return dataclasses.replace(said, value=str(said.value).replace("ann@example.org", "[EMAIL]"))

    Sitting(ReviewQueue(store, redact=redact)).edit("write to ann@example.org")
    assert decisions(store) == {"q": ["write to [EMAIL]"]}


# --- as markup -----------------------------------------------------------------------------------------------------

TAGS = {"section", "h2", "div", "p", "span", "ol", "li", "dl", "dt", "dd", "del", "ins"}


class Reader(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.told = ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.told += data


def read(markup: str) -> Reader:
    reader = Reader()
    reader.feed(markup)
    reader.close()
    return reader


PIECES = [
    "<a>",
    "<script>",
    "</div>",
    "<b x='",
    "&lt;",
    "&",
    '"',
    "{{a}}",
    "${a}",
    "`",
    "\\u003c",
    "\r\n",
    " ",
    "é",
    *UNSEEN,
]
TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.characters()), max_size=12).map("".join)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=TEXTS, after=TEXTS, name=TEXTS)
def test_no_text_becomes_markup_and_none_is_hidden(make_correction, before, after, name):
    made = dataclasses.replace(
        make_correction(before, before, after, context=(before,), turns=(Turn(role=name, text=before),)),
        edits=(),
        reason=name,
        criteria=(name,),
        scores={name: 0.5},
        findings=(Finding(check=name, action="warn", message=name),),
    )
    said = (Feedback(kind="comment", value=name, author=name, run_id="r", at_ms=10**17),)
    record = Record(correction=made, feedback=said)
    shown = [show(record) for show in (showing.conversation, showing.changes, showing.passages, showing.facts)]
    for one in map(read, [*shown, showing.note(name)]):
        assert one.tags <= TAGS | {"p"}
        assert one.attributes <= {"class", "dir", "style", "role"}
        assert not showing._UNSEEN.search(one.told)
        one.told.encode()
    conversation = read(shown[0]).told
    if not showing._UNSEEN.search(before.replace("\r\n", "\n")):
        assert before.replace("\r\n", "\n") in conversation


def test_what_nobody_sees_is_spelt_out():
    assert read(showing.text(UNSEEN)).told == "U+202Egnp.exeU+202C U+0000 U+D800 U+200B U+001B[31m U+E0041"
    family = "👨\u200d👩\u200d👧 می\u200cخواهم"
    assert read(showing.text(family)).told == family


def test_a_diff_shows_changes_of_lines_and_does_not_trust_stored_edits(make_correction):
    correction = dataclasses.replace(make_correction("q", "a\n\nb", "a\nb"), edits=())
    assert "<del>↵\n</del>" in showing.changes(Record(correction=correction))
    empty = make_correction("q", "", "")
    assert "empty" in showing.changes(Record(correction=empty))
    filled = showing.changes(Record(correction=make_correction("q", "", "text")))
    assert "<ins>text</ins>" in filled


def test_a_very_long_passage_is_cut_and_says_so(make_correction):
    shown = showing.passages(Record(correction=make_correction(context=("x" * 60_000,))))
    assert "10,000 more characters" in shown
    assert len(shown) < 51_000


# --- the page in a browser -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    pytest.importorskip("gradio", reason="extra review is not installed")
    pytest.importorskip("selenium", reason="selenium is not installed")
    import browser as support

    if reason := support.missing():
        pytest.skip(reason)
    window = support.Browser()
    yield window
    window.close()


@contextmanager
def serving(queue: ReviewQueue, author: str | None = None) -> Iterator[str]:
    from bootstrap.review.server import ReviewServer

    server = ReviewServer(queue, port=0, author=author)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server.url
    finally:
        server.stop()
        thread.join()


def test_accept_reject_edit_skip_and_back_by_buttons_and_keys(browser, store, correct):
    from selenium.webdriver.common.keys import Keys

    store.append(map(correct, ["first", "second", "third", "fourth", "fifth"]))
    with serving(ReviewQueue(store), "ann") as url:
        browser.open(url)
        browser.until("#question", "fifth")
        assert browser.text("#changes .text") == "badgood"
        assert browser.element("#changes del").text == "bad"
        assert browser.element("#changes ins").text == "good"
        browser.element("#accept").click()
        browser.until("#question", "fourth")
        assert decisions(store) == {"fifth": [True]}
        browser.press("r")
        browser.until("#question", "third")
        assert "1 accepted, 1 rejected" in browser.text("#progress")
        browser.press("e")
        browser.press(Keys.END, " as a person says it: a, r, s, b")
        browser.chord(Keys.CONTROL, Keys.ENTER)
        browser.until("#question", "second")
        edited = "good as a person says it: a, r, s, b"
        assert decisions(store) == {"fifth": [True], "fourth": [False], "third": [edited]}
        browser.press(Keys.ESCAPE, "b")
        browser.until("#question", "third")
        assert browser.value("#text textarea") == edited
        browser.until("#facts", "edited by ann")
        browser.element("#save").click()
        browser.until("#note", "The text is as it was")
        browser.press("a")
        browser.until("#question", "second")
        browser.press("s")
        browser.until("#question", "first")
        browser.press("a")
        browser.until("#question", "Nothing is left to review")
        assert not browser.element("#accept").is_enabled()
        assert "4 of 5 reviewed: 3 accepted, 1 rejected, 0 edited" in browser.text("#progress")
        assert browser.asked_for() == {"127.0.0.1"}
        assert browser.complaints() == []
    assert decisions(store)["third"] == [edited, True]


def test_hostile_texts_are_shown_as_texts(browser, store, correct):
    arabic = correct("ما هي المدة؟", "عشرة أيام", "ثلاثون يومًا")
    unseen = correct(UNSEEN, UNSEEN, f"{UNSEEN} more", context=(UNSEEN, ""))
    hostile = correct(
        HOSTILE,
        HOSTILE,
        f"{HOSTILE} more",
        context=(HOSTILE,),
        turns=(Turn(role=HOSTILE, text=HOSTILE),),
        upstream=HOSTILE,
    )
    hostile = dataclasses.replace(
        hostile, reason=HOSTILE, criteria=(HOSTILE,), findings=(Finding(check=HOSTILE, action="warn", message=HOSTILE),)
    )
    store.append([arabic, unseen, hostile])
    store.add_feedback([Feedback(kind="comment", value=HOSTILE, author=HOSTILE, correction_id=hostile.id)])
    with serving(ReviewQueue(store)) as url:
        browser.open(url)
        browser.until("#question", HOSTILE)
        for part in ("#passages", "#changes", "#facts"):
            assert HOSTILE in browser.text(part)
        assert browser.value("#text textarea") == f"{HOSTILE} more"
        assert browser.driver.execute_script("return window.hacked") is None
        assert not browser.driver.execute_script(
            "return document.querySelector('section :is(script, img, a, b, math)')"
        )
        browser.press("r")
        browser.until("#question", "U+202Egnp.exe")
        assert browser.value("#text textarea").endswith("more")
        browser.press("a")
        browser.until("#question", "ما هي المدة؟")
        direction = "return getComputedStyle(document.querySelector('#question .text')).direction"
        assert browser.driver.execute_script(direction) == "rtl"
        assert browser.asked_for() == {"127.0.0.1"}
        assert browser.complaints() == []
    assert len(decisions(store)) == 2


def test_a_script_in_the_page_would_not_run(browser, store, correct):
    store.append([correct("q")])
    with serving(ReviewQueue(store)) as url:
        browser.open(url)
        browser.until("#question", "q")
        inject = "document.querySelector('#question').innerHTML = \"<img src=/x onerror='window.hacked = 1'>\";"
        browser.driver.execute_async_script(
            f"{inject} document.addEventListener('securitypolicyviolation', arguments[0]);"
        )
        assert browser.driver.execute_script("return window.hacked") is None
        assert "script-src" in " ".join(browser.complaints())


def test_a_tab_that_is_closed_lets_go_of_its_record(browser, store, correct):
    store.append([correct("q")])
    queue = ReviewQueue(store)
    with serving(queue) as url:
        browser.open(url)
        browser.until("#question", "q")
        assert queue.take() is None
        browser.open("about:blank")
        browser.wait(lambda: queue.take() is not None)


@dataclasses.dataclass
class Tab:
    """What the desk is told of a tab."""

    session_hash: str


def test_a_second_key_is_not_about_the_record_that_comes_next(store, correct):
    pytest.importorskip("gradio", reason="extra review is not installed")
    from bootstrap.review.page import Desk

    store.append(map(correct, "abc"))
    desk, tab = Desk(ReviewQueue(store)), Tab("one")
    shown_id = desk.sit_down(tab)["shown_id"]
    for _ in range(3):
        shown = desk.act(tab, shown_id, Sitting.accept, "Accepted.")
    assert decisions(store) == {"c": [True]}
    store.delete(ids=[shown["shown_id"]])
    failed = desk.act(tab, shown["shown_id"], Sitting.reject, "Rejected.")
    assert set(failed) == {"note"}
    assert "deleted meanwhile" in failed["note"]
    assert desk.act(tab, shown["shown_id"], Sitting.forward, "Skipped.")["shown_id"] == "000000"
    desk.leave(tab)
    assert desk.sit_down(Tab("two"))["shown_id"] == "000000"


# --- who is answered -----------------------------------------------------------------------------------------------


def status(url: str, path: str = "/", method: str = "GET", **headers: str) -> int:
    address = url.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    found = connection.getresponse().status
    connection.close()
    return found


def test_only_this_machines_own_page_is_answered(store, correct):
    pytest.importorskip("gradio", reason="extra review is not installed")
    store.append([correct("q")])
    with serving(ReviewQueue(store)) as url:
        own = url.rstrip("/")
        assert status(url) == 200
        assert status(url, Origin=own) == 200
        assert status(url, Host="evil.example") == 403
        assert status(url, Host="evil.example:7860", Origin="http://evil.example:7860") == 403
        assert status(url, Host="[") == 403
        for origin in ("http://evil.example", "null", "http://127.0.0.1:1", f"https{own[4:]}"):
            assert status(url, "/gradio_api/queue/join", "POST", Origin=origin) == 403
        for path in (
            "/gradio_api/upload",
            "/gradio_api/file=/etc/passwd",
            "/gradio_api/proxy=http://x",
            "/monitoring",
            "/docs",
        ):
            assert status(url, path) == 404
        assert status(url, "/gradio_api/upload", "POST") == 404


def test_a_port_that_is_taken_is_an_error_with_a_way_out(store, correct):
    pytest.importorskip("gradio", reason="extra review is not installed")
    from bootstrap.review.server import ReviewServer

    with serving(ReviewQueue(store)) as url, pytest.raises(ConfigurationError, match="--port"):
        ReviewServer(ReviewQueue(store), port=int(url.rstrip("/").rpartition(":")[2]))


def test_gradio_is_loaded_by_the_page_alone(run_python):
    done = run_python(
        "import sys\n"
        "import bootstrap.cli, bootstrap.review, bootstrap.review.server, bootstrap.review.showing\n"
        "assert 'gradio' not in sys.modules and 'uvicorn' not in sys.modules\n"
        "sys.modules['gradio'] = None\n"
        "from bootstrap.cli import main\n"
        "from bootstrap.store import CorrectionStore\n"
        "from aligner_chain import Exchange, Correction\n"
        "asked = [Exchange.of(str(n), 'a') for n in range(9)]\n"
        "CorrectionStore('c.db').append(Correction(exchange=one, text='b', outcome='corrected') for one in asked)\n"
        "sys.exit(main(['review', '--store', 'c.db', '--no-browser']))\n"
    )
    assert done.returncode == 2, done.stderr
    assert "pip install 'aligner-chain[review]'" in done.stderr


def test_the_command_says_where_nothing_is_to_be_reviewed(store, capsys):
    assert main(["review", "--store", str(store.path), "--no-browser"]) == 0
    assert "nothing to review" in capsys.readouterr().out
    assert main(["review", "--store", "missing.db", "--no-browser"]) == 1
    assert "missing.db" in capsys.readouterr().err


def test_ctrl_c_ends_a_review_with_what_was_done(store, correct):
    pytest.importorskip("gradio", reason="extra review is not installed")
    store.append([correct("q")])
    command = [
        sys.executable,
        "-m",
        "bootstrap.cli",
        "review",
        "--store",
        str(store.path),
        "--port",
        "0",
        "--no-browser",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        first = process.stdout.readline()
        assert first.startswith("1 corrections to review at http://127.0.0.1:")
        assert status(first.split(" at ")[1].split()[0]) == 200
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[0] == "0 accepted, 0 rejected, 0 edited.\n"
    assert process.returncode == 0
