"""The page's widgets, made with Gradio (extra `review`); imported by `server`, where it is needed.

Texts go into `gr.Textbox`, and as escaped markup into `gr.HTML`. No other part may be given one: most read Markdown,
LaTeX or links.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any

import gradio as gr

from aligner_chain.errors import AlignerError
from bootstrap.review import showing
from bootstrap.review.queue import ReviewQueue, Sitting

Shown = dict[str, Any]
"""What changes on the page: new values by the names of its parts."""


class Desk:
    """Who sits at the page: a sitting for each tab that is open.

    Every method is told the tab by `request`, and returns what the tab shows from then on.
    """

    def __init__(self, queue: ReviewQueue, author: str | None = None) -> None:
        self.queue, self.author = queue, author
        self._sittings: dict[str, Sitting] = {}
        self._lock = Lock()  # Gradio answers two buttons of one tab at the same time

    def sit_down(self, request: gr.Request) -> Shown:
        """A tab was opened."""
        with self._lock:
            return self._shown(self._sitting(request))

    def leave(self, request: gr.Request) -> None:
        """A tab was closed: others may have what it showed."""
        with self._lock:
            if sitting := self._sittings.pop(str(request.session_hash), None):
                sitting.close()

    def act(self, request: gr.Request, shown_id: str, act: Callable[[Sitting], None], done: str) -> Shown:
        """A button was pressed beneath the record with `shown_id`."""
        with self._lock:
            sitting = self._sitting(request)
            # A second key, pressed before the page has changed, is not about the record that came after it.
            if shown_id != _id(sitting):
                return self._shown(sitting)
            try:
                act(sitting)
            except AlignerError as error:
                return {"note": showing.note(str(error), "trouble")}
            return self._shown(sitting, done)

    def _sitting(self, request: gr.Request) -> Sitting:
        tab = str(request.session_hash)
        if tab not in self._sittings:
            self._sittings[tab] = Sitting(self.queue, self.author)
        return self._sittings[tab]

    def _shown(self, sitting: Sitting, done: str = "") -> Shown:
        record, now = sitting.record, self.queue.progress
        there = record is not None
        shown = {
            "shown_id": _id(sitting),
            "progress": showing.progress(now),
            "note": showing.note(done),
            "question": showing.conversation(record) if record else showing.nothing_left(now),
            "changes": _unless_empty(showing.changes(record) if record else ""),
            "passages": _unless_empty(showing.passages(record) if record else ""),
            "facts": _unless_empty(showing.facts(record) if record else ""),
            "text": gr.update(value=sitting.text, visible=there),
            "back": gr.update(interactive=not sitting.is_first),
        }
        return shown | {name: gr.update(interactive=there) for name in ("skip", "reject", "accept", "save")}


def make_page(desk: Desk) -> gr.Blocks:
    """The page of a desk."""
    page = gr.Blocks(title="Review of corrections", analytics_enabled=False, fill_width=True)
    with page:
        _connect(page, desk, _parts())
    return page


def _parts() -> dict[str, gr.components.Component]:
    parts: dict[str, gr.components.Component] = {
        "shown_id": gr.Textbox(visible=False),
        "progress": _markup("progress"),
    }
    with gr.Row(elem_id="record"):
        with gr.Column(scale=3, min_width=320):
            parts |= {"question": _markup("question"), "changes": _markup("changes")}
            parts["text"] = gr.Textbox(
                label="The text as it should be (E to edit, Esc to leave, Ctrl+Enter to save)",
                lines=4,
                max_lines=20,
                elem_id="text",
                autoscroll=False,
            )
        with gr.Column(scale=2, min_width=320):
            parts |= {"passages": _markup("passages"), "facts": _markup("facts")}
    with gr.Column(elem_id="decide"):
        parts["note"] = _markup("note")
        with gr.Row():
            for name, (label, variant) in _BUTTONS.items():
                parts[name] = gr.Button(label, variant=variant, elem_id=name, min_width=96)
    return parts


_BUTTONS: Mapping[str, tuple[str, Any]] = {
    "back": ("Back (B)", "secondary"),
    "skip": ("Skip (S)", "secondary"),
    "reject": ("Reject (R)", "stop"),
    "accept": ("Accept (A)", "primary"),
    "save": ("Save edit", "secondary"),
}


def _markup(name: str) -> gr.HTML:
    return gr.HTML(elem_id=name, apply_default_css=False, js_on_load=None)


def _connect(page: gr.Blocks, desk: Desk, parts: dict[str, Any]) -> None:
    outputs = list(parts.values())
    shown_id, text = parts["shown_id"], parts["text"]

    def updates(shown: Shown) -> dict[Any, Any]:
        return {parts[name]: value for name, value in shown.items()}

    def sit_down(request: gr.Request) -> dict[Any, Any]:
        return updates(desk.sit_down(request))

    def on(name: str, act: Callable[[Sitting, str], None], done: str) -> None:
        def pressed(shown_id: str, text: str, request: gr.Request) -> dict[Any, Any]:
            return updates(desk.act(request, shown_id, lambda sitting: act(sitting, text), done))

        parts[name].click(pressed, [shown_id, text], outputs, **_QUIETLY).then(fn=None, js=_TO_THE_TOP, **_QUIETLY)

    page.load(sit_down, None, outputs, **_QUIETLY)
    page.unload(desk.leave)
    on("back", lambda sitting, _: sitting.back(), "")
    on("skip", lambda sitting, _: sitting.forward(), "Skipped.")
    on("reject", lambda sitting, _: sitting.reject(), "Rejected.")
    on("accept", lambda sitting, _: sitting.accept(), "Accepted.")
    on("save", lambda sitting, text: sitting.edit(text), "Your text is saved.")


_QUIETLY: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
_TO_THE_TOP = "() => window.scrollTo(0, 0)"


def _unless_empty(markup: str) -> dict[str, Any]:
    return gr.update(value=markup, visible=bool(markup))


def _id(sitting: Sitting) -> str:
    return sitting.record.correction.id if sitting.record else ""
