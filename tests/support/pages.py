"""The examples of a page of the documentation, one after the other, as a reader would type them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def run_examples(page: Path) -> None:
    """Runs every block of Python on a page, in one namespace."""
    names: dict[str, Any] = {}
    for example in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        exec(compile(example, str(page), "exec"), names)
