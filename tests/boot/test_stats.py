"""What was collected, as figures: counted by hand on small stores, and drawn so that nothing in a store can play markup."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aligner_chain.exchange import Correction, Exchange, Usage, edits_between
from bootstrap.charts import Layer, column_chart, thinned
from bootstrap.cli import main
from bootstrap.commands.stats import bar, since_ms, sparkline
from bootstrap.records import Feedback, Record
from bootstrap.stats.figures import MOST_NAMES, OTHERS, Opinions, Statistics, statistics
from bootstrap.stats.page import render
from bootstrap.store import CorrectionStore

Make = Callable[..., Correction]


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def kept(correction: Correction, when: str = "2026-11-02T12:00", weight: float = 1.0, **changes: Any) -> Record:
    return Record(correction=replace(correction, **changes), weight=weight, at_ms=at(when))


def usage(latency_s: float, read: int = 0, written: int = 0) -> Usage:
    return Usage(latency_s=latency_s, prompt_tokens=read, new_tokens=written)


@pytest.fixture
def filled(any_store: CorrectionStore, make_correction: Make) -> CorrectionStore:
    store = any_store
    """Two corrected answers, one of them with two edits, and one that stands for ten like it, over four days."""
    twice = make_correction("One?", "a bad and a bad", "a good and a good", upstream="gpt@1")
    store.append(
        [
            kept(twice, "2026-11-01T23:59:59", criteria=("true", "kind"), usage=usage(2, 100, 10)),
            kept(
                make_correction("Two?", upstream="gpt@1"), "2026-11-02T00:00", criteria=("true",), usage=usage(1, 300)
            ),
            kept(make_correction("Three?", "right", "right"), "2026-11-04T12:00", weight=10.0, usage=usage(0.5, 500)),
            kept(make_correction("Four?", "right", "right", outcome="failed"), "2026-11-04T12:00", aligner="tiny@2"),
        ]
    )
    return store


def test_stored_and_estimated_counts(filled: CorrectionStore) -> None:
    found = statistics(filled)
    assert (found.total.stored, found.total.estimated, found.total.changed_share) == (4, 13.0, 2 / 13)
    assert {name: (one.stored, one.estimated) for name, one in found.total.outcomes.items()} == {
        "corrected": (2, 2.0),
        "approved": (1, 10.0),
        "failed": (1, 1.0),
    }
    assert {name: (one.stored, one.estimated) for name, one in found.upstreams.items()} == {
        "(unknown)": (2, 11.0),
        "gpt@1": (2, 2.0),
    }
    assert {name: one.stored for name, one in found.aligners.items()} == {"tiny@1": 3, "tiny@2": 1}
    assert list(found.criteria) == ["true", "kind"]
    assert [one.stored for one in found.criteria.values()] == [2, 1]
    assert found.mean_edits == 1.5
    assert sum(group.stored for group in found.splits.values()) == 4


def test_quantiles_respect_weights(filled: CorrectionStore) -> None:
    found = statistics(filled)
    # Twelve answers tell: ten took 0.5 s, one 1 s and one 2 s; 95 % of them are 11.4.
    assert found.latency_s is not None
    assert found.tokens_read is not None
    assert found.tokens_written is not None
    assert (found.latency_s.median, found.latency_s.p95, found.latency_s.stored) == (0.5, 2.0, 3)
    assert (found.tokens_read.median, found.tokens_read.p95) == (500, 500)
    assert (found.tokens_written.median, found.tokens_written.stored) == (10, 1)


def test_periods_begin_in_utc_and_none_is_left_out(filled: CorrectionStore) -> None:
    days = statistics(filled).periods
    assert [(start.isoformat(), group.stored) for start, group in days.items()] == [
        ("2026-11-01", 1),
        ("2026-11-02", 1),
        ("2026-11-03", 0),
        ("2026-11-04", 2),
    ]
    # The first of November 2026 is a Sunday.
    weeks = statistics(filled, by="week").periods
    assert {start: group.stored for start, group in weeks.items()} == {date(2026, 10, 26): 1, date(2026, 11, 2): 3}
    assert {start: group.stored for start, group in statistics(filled, by="month").periods.items()} == {
        date(2026, 11, 1): 4
    }


def test_since_leaves_out_what_is_older(filled: CorrectionStore) -> None:
    found = statistics(filled, since_ms=at("2026-11-02T00:00"))
    assert (found.total.stored, found.criteria["true"].stored, list(found.criteria)) == (3, 1, ["true"])
    assert found.latency_s is not None
    assert found.latency_s.stored == 2


def test_feedback(any_store: CorrectionStore) -> None:
    store = any_store
    about: dict[str, Any] = {"message_id": "m", "at_ms": 1000}
    values: list[tuple[Any, Any]] = [
        *[("thumb", True)] * 3,
        ("thumb", False),
        ("review", True),
        ("review", False),
        ("edit", "true"),
        ("comment", "5"),
        ("score", 2),
        ("score", 4.5),
    ]
    store.add_feedback([Feedback(kind=kind, value=value, **about) for kind, value in values])
    said = statistics(store).feedback
    assert said == Opinions(up=3, down=1, accepted=1, rejected=1, edits=1, comments=1, scores=2, mean_score=3.25)
    assert (said.up_share, said.accepted_share, said.total) == (0.75, 0.5, 10)
    assert statistics(store, since_ms=1001).feedback == Opinions()


def test_scores_at_the_end_of_what_is_finite_have_a_mean(any_store: CorrectionStore) -> None:
    """JSON has no word for the infinity that their sum would be, and PostgreSQL refuses it."""
    any_store.add_feedback([Feedback(kind="score", value=1.5e308, message_id="m") for _ in range(3)])
    assert statistics(any_store).feedback.mean_score == pytest.approx(1.5e308)


def test_names_without_end_take_no_memory_without_end(store: CorrectionStore, make_correction: Make) -> None:
    store.append(kept(make_correction(f"Q {n}?", upstream=f"model@{n:03}")) for n in range(MOST_NAMES + 20))
    found = statistics(store)
    assert len(found.upstreams) == MOST_NAMES + 1
    assert found.upstreams[OTHERS].stored == 20


def test_a_clock_that_is_off_breaks_nothing(store: CorrectionStore, make_correction: Make) -> None:
    store.append([Record(correction=make_correction(), at_ms=when) for when in (0, at("2026-11-02T00:00"), 10**17)])
    found = statistics(store, by="day")
    assert list(found.periods) == [date(1970, 1, 1), date(2026, 11, 2), date.max]
    assert render(found, "store")
    assert len(statistics(store, by="month").periods) == 3


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["approved", "corrected", "kept", "skipped", "failed"]),
            st.integers(at("2026-01-01T00:00"), at("2026-12-31T00:00")),
            st.sampled_from([1.0, 4.0]),
            st.lists(st.sampled_from(["true", "kind"]), unique=True),
        ),
        max_size=12,
    ),
    st.sampled_from(["day", "week", "month"]),
)
def test_figures_are_those_of_counting_one_by_one(tmp_path_factory: Any, rows: list[Any], by: Any) -> None:
    store = CorrectionStore(tmp_path_factory.mktemp("stats") / "store.db")
    exchange = Exchange.of("Q?", "a bad one")
    store.append(
        Record(
            correction=Correction(
                exchange=exchange,
                text="a good one",
                outcome=outcome,
                edits=edits_between("a bad one", "a good one"),
                criteria=tuple(criteria),
                id=str(number),
            ),
            weight=weight,
            at_ms=when,
        )
        for number, (outcome, when, weight, criteria) in enumerate(rows)
    )
    found = statistics(store, by=by)
    stored = Counter(outcome for outcome, *_ in rows)
    assert {name: one.stored for name, one in found.total.outcomes.items()} == stored
    assert found.total.estimated == sum(weight for _, _, weight, _ in rows)
    assert sum(group.stored for group in found.periods.values()) == len(rows)
    named = Counter(name for *_, criteria in rows for name in criteria)
    assert {name: one.stored for name, one in found.criteria.items()} == named
    assert found.mean_edits == (1.0 if stored["corrected"] else None)


# --- the page ---------------------------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script>\x1b[31m&\"'"


def test_the_page_shows_every_section_and_loads_nothing(filled: CorrectionStore) -> None:
    filled.add_feedback([Feedback(kind="thumb", value=True, message_id="m")])
    page = render(statistics(filled), "corrections.db")
    for heading in ("Over time", "Criteria", "Upstreams", "Aligners", "Splits", "What the Aligner took", "What people"):
        assert f"<h2>{heading}" in page
    assert "15.4 %" in page
    assert not any(word in page for word in ("http:", "https:", "<script", "<link", "<img", "@import", "url("))
    assert len(svgs(page)) == 5
    for table in page.split("<table")[1:]:
        cells = [row.count("<td") + row.count("<th") for row in table.split("</table>")[0].split("<tr>")[1:]]
        assert len(set(cells)) == 1, table[:300]


def svgs(page: str) -> list[ElementTree.Element]:
    parts = page.split("<svg")[1:]
    return [ElementTree.fromstring("<svg" + part.split("</svg>")[0] + "</svg>") for part in parts]


def test_nothing_in_a_store_plays_markup_or_an_escape_sequence(
    store: CorrectionStore, make_correction: Make, tmp_path: Path, capsys: Any
) -> None:
    store.append([kept(make_correction(upstream=HOSTILE), criteria=(HOSTILE, "\ud83d"), aligner=HOSTILE)])
    page = tmp_path / "folder" / "page.html"
    assert main(["stats", "--store", str(store.path), "--html", str(page)]) == 0
    assert "<script" not in page.read_text(encoding="utf-8")
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert "alert(1)" in told


def test_columns_stand_on_each_other(filled: CorrectionStore) -> None:
    chart = column_chart(
        "T", "D", ["a", "b"], [Layer(name="x", style="one", values=[3, 0]), Layer(name="y", style="two", values=[1, 4])]
    )
    rects = [dict(part.attrib) for part in ElementTree.fromstring(chart) if part.tag == "rect"]
    heights = [(rect["class"], float(rect["height"])) for rect in rects]
    assert [style for style, _ in heights] == ["column one", "column two", "column two"]
    assert heights[0][1] == pytest.approx(3 * heights[1][1], rel=1e-3)
    assert heights[2][1] == pytest.approx(4 * heights[1][1], rel=1e-3)
    assert float(rects[1]["y"]) + heights[1][1] == pytest.approx(float(rects[0]["y"]), abs=0.01)


@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=200))
def test_no_column_leaves_its_chart(values: list[float]) -> None:
    ticks = [str(index) for index in range(len(values))]
    chart = ElementTree.fromstring(column_chart("T", "D", ticks, [Layer(name="x", style="one", values=values)]))
    places = [(float(part.attrib["y"]), float(part.attrib["height"])) for part in chart if part.tag == "rect"]
    assert all(y >= 13.99 and y + height <= 266.01 for y, height in places)
    assert 2 <= sum(part.tag == "line" for part in chart) <= 6
    assert sum(map(bool, thinned(ticks))) <= 8


# --- the command ------------------------------------------------------------------------------------------------


def test_the_table_in_a_terminal(url: str, filled: CorrectionStore, capsys: Any) -> None:
    assert main(["stats", "--store", url]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "4 records stored, standing for about 13 answers; 15.4 % of these were corrected."
    for line in (
        f"right as they were 1 10 76.9 % {'█' * 23}",
        "2026-11-03 0 0 –",
        "(unknown) 2 11 0.0 %",
        "latency 500 ms 2.00 s 3",
        "edits, mean 1.50",
    ):
        assert line in lines


def test_json(url: str, filled: CorrectionStore, capsys: Any) -> None:
    assert main(["stats", "--store", url, "--json", "--by", "month"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["periods"]["2026-11-01"]["stored"] == 4
    assert found["total"]["changed_share"] == pytest.approx(2 / 13)
    assert found["feedback"]["up_share"] is None


def test_a_terminal_without_blocks(url: str, filled: CorrectionStore, run_python: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    script = "import sys, bootstrap.cli; sys.exit(bootstrap.cli.main(['stats', '--store', sys.argv[1]]))"
    done = run_python(script, url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "#####" in done.stdout


def test_an_empty_store_says_so(store: CorrectionStore, make_correction: Make, tmp_path: Path, capsys: Any) -> None:
    page = tmp_path / "page.html"
    assert main(["stats", "--store", str(store.path), "--html", str(page)]) == 0
    assert "no records yet" in capsys.readouterr().out
    assert not page.exists()
    store.append([kept(make_correction())])
    assert main(["stats", "--store", str(store.path), "--since", "2026-11-03"]) == 0
    assert "no records since 2026-11-03" in capsys.readouterr().out
    assert main(["stats", "--store", str(store.path), "--since", "yesterday"]) == 2
    assert main(["stats", "--store", str(tmp_path / "none.db")]) == 1
    assert not (tmp_path / "none.db").exists()


def test_since() -> None:
    assert since_ms(None) is None
    assert since_ms("2026-11-01") == at("2026-11-01T00:00")
    hours = [since_ms(text) or 0 for text in ("24h", "1d", "7d", "1w")]
    assert abs(hours[0] - hours[1]) < 1000
    assert hours[0] - hours[2] == pytest.approx(6 * 86_400_000, abs=1000)
    assert hours[2] == pytest.approx(hours[3], abs=1000)


def test_bars() -> None:
    assert sparkline([0, 1, 2, 8], plain=True) == " .:#"
    assert sparkline([]) == ""
    assert sparkline([0.0, 0.0]) == "▁▁"
    assert (bar(0), bar(0.001), len(bar(1))) == ("", "█", 30)


def test_statistics_are_plain_values(filled: CorrectionStore) -> None:
    assert isinstance(statistics(filled), Statistics)
    assert json.loads(json.dumps(statistics(filled).as_dict()))["by"] == "day"
