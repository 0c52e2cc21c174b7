"""The Aligners of this process: each is loaded once, whoever asks for it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from aligner_chain.aligner import Aligner
from aligner_chain.errors import AlignerError
from aligner_chain.policy import Policy
from aligner_chain.serving import resolve_aligner

_LOADED: WeakValueDictionary[str, Aligner] = WeakValueDictionary()
_NAMED: dict[str, Aligner] = {}
_SERVED: dict[str, Aligner] = {}  # at most one
_LOADING = threading.Lock()


def shared_aligner(source: str | Path | None = None) -> Aligner:
    """The Aligner of a folder or hub id; None: the one that `resolve_aligner` finds at this call.

    A named one stays loaded. A served one does until another is served, and then as long as a call still uses it.

    Raises the errors of `resolve_aligner` and of `Aligner.from_pretrained`.
    """
    key, held = _key(source or resolve_aligner()), _NAMED if source else _SERVED
    if (aligner := held.get(key)) is not None:
        return aligner
    with _LOADING:
        aligner = _LOADED.get(key) or Aligner.from_pretrained(key)
        if held is _SERVED:
            held.clear()
        _LOADED[key] = held[key] = aligner
        return aligner


def loaded_aligner(source: str | Path | None = None) -> Aligner | None:
    """What `shared_aligner` would return, if that is loaded already; it is never loaded, and nothing is raised."""
    try:
        return (_NAMED if source else _SERVED).get(_key(source or resolve_aligner()))
    except AlignerError:
        return None


def configured(
    aligner: Aligner, policy: Policy | None, criteria: Sequence[str] | None, strength: float | None
) -> Aligner:
    """The Aligner under what a component was given beside it; itself where that is nothing."""
    told = {"criteria": criteria, "strength": strength}
    changes: dict[str, Any] = {name: value for name, value in told.items() if value is not None}
    if policy is None and not changes:
        return aligner
    return aligner.under(replace(policy or aligner.policy, **changes))


def _key(source: str | Path) -> str:
    folder = Path(source).expanduser()
    return str(folder.resolve()) if folder.is_dir() else str(source)
