"""The places of tables in the pages: between two comments, which neither the site nor GitHub shows.

<!-- table: NAME -->

| ... |

<!-- end -->
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACE = re.compile(r"^<!-- table: (\S+) -->\n(.*?)^<!-- end -->$", re.DOTALL | re.MULTILINE)
MARK = re.compile(r"^<!-- (?:table: .*|end) -->$", re.MULTILINE)


def pages_of(names: Collection[str], pages: Sequence[Path] = PAGES) -> dict[str, Path]:
    """The page of each table. Each has one place; a place of another name, or half a place, ends the program."""
    found: dict[str, Path] = {}
    for page in pages:
        for name in _named(page):
            if name not in names:
                raise SystemExit(
                    f"{page.name} has a place for {name}, which is no table. Known are {', '.join(names)}."
                )
            if name in found:
                raise SystemExit(f"{name} has a place in {found[name].name} and another in {page.name}.")
            found[name] = page
    if missing := [name for name in names if name not in found]:
        told = f"<!-- table: {missing[0]} -->\n\n<!-- end -->"
        raise SystemExit(f"No page has a place for {', '.join(missing)}. Put these lines where it belongs:\n\n{told}")
    return found


def _named(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    known, marks = PLACE.findall(text), MARK.findall(text)
    if len(marks) != 2 * len(known):
        raise SystemExit(f"{page.name} has a comment  <!-- table: NAME -->  or  <!-- end -->  without the other.")
    return [name for name, _ in known]


def filled(text: str, tables: Mapping[str, Sequence[str]]) -> str:
    """The text with every table in its place."""
    return PLACE.sub(lambda place: "\n".join(_placed(place[1], tables[place[1]])), text)


def _placed(name: str, lines: Sequence[str]) -> list[str]:
    return [f"<!-- table: {name} -->", "", *lines, "", "<!-- end -->"]


def difference(page: Path, before: str, after: str) -> Iterator[str]:
    return difflib.unified_diff(
        before.splitlines(), after.splitlines(), page.name, f"{page.name}, from the stored files", lineterm=""
    )
