"""Which table is of which stored files, and what computes these: docs/figures.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cells import lines
from recompute import MADE_BY, RECIPES, Recipe


def by_table(files: Mapping[str, Sequence[str]], places: Mapping[str, Path]) -> list[str]:
    rows = [[f"`{name}`", _page(places[name]), ", ".join(f"`{one}.json`" for one in of)] for name, of in files.items()]
    return lines(["table", "page", "stored file"], rows)


def _page(page: Path) -> str:
    return f"[{page.name}]({page.name})" if page.parent.name == "docs" else page.name


def by_file() -> list[str]:
    rows = [[f"`{name}`", _commands(recipe), _minutes(recipe)] for name, recipe in RECIPES.items()]
    return lines(["stored file", "commands; in brackets what makes the folders that they read", "minutes"], rows)


def _commands(recipe: Recipe) -> str:
    first = [f"(`{MADE_BY[path]}`)" for path in recipe.reads]
    return "<br>".join([*first, *(f"`{command}`" for command in recipe.commands)])


def _minutes(recipe: Recipe) -> str:
    return "" if recipe.minutes is None else str(recipe.minutes)
