"""What the tests of the proxy share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from proxying import Upstream


@pytest.fixture(scope="module")
def behind() -> Iterator[Upstream]:
    """An upstream for a module's tests, each of which gives it the answers that it needs."""
    from proxying import upstream

    with upstream() as made:
        yield made
