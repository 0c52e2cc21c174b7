"""The examples of a page of the documentation, one after the other, as a reader would type them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def examples(page: Path) -> list[str]:
    """The blocks of Python on a page, but for those marked `notest`."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def run_examples(page: Path) -> None:
    """Runs every block of Python on a page, in one namespace."""
    names: dict[str, Any] = {}
    for example in examples(page):
        exec(compile(example, str(page), "exec"), names)
