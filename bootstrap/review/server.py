"""Serves the review page to this machine alone."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

from aligner_chain.errors import ConfigurationError, MissingExtraError
from bootstrap.review.guard import Guard
from bootstrap.review.queue import ReviewQueue

if TYPE_CHECKING:
    import uvicorn

HOST = "127.0.0.1"
PORT = 7860
_FOLDER = Path(__file__).parent


class ReviewServer:
    """The page of a queue at a port of 127.0.0.1, never at another address.

    The port is taken when this is made, so that a browser may be sent to `url` before `run` is called.

    Args:
        queue: what is to be reviewed.
        port: where; 0 for any that is free.
        author: whose decisions they are.

    Raises:
        ConfigurationError: the port is taken.
        MissingExtraError: Gradio is not installed.
    """

    def __init__(self, queue: ReviewQueue, *, port: int = PORT, author: str | None = None) -> None:
        self._server = _server(queue, author)
        self._socket = _listening(port)
        self.url = f"http://{HOST}:{self._socket.getsockname()[1]}/"

    def run(self) -> None:
        """Serves until `stop`, or until the process is told to end (Ctrl-C, SIGTERM)."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()

    def stop(self) -> None:
        """Lets `run` return, from another thread."""
        self._server.should_exit = True


def _server(queue: ReviewQueue, author: str | None) -> uvicorn.Server:
    try:
        import gradio
        import uvicorn
        from fastapi import FastAPI
        from fastapi.responses import FileResponse
    except ImportError as error:
        raise MissingExtraError("gradio", "review") from error
    from bootstrap.review.page import Desk, make_page

    # No pages of an API, no link to share, no telemetry, no history of runs, no files.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route("/page.js", lambda: FileResponse(_FOLDER / "page.js"))
    gradio.mount_gradio_app(
        app,
        make_page(Desk(queue, author)),
        "/",
        server_name=HOST,
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        show_error=False,
        max_file_size=0,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        # Gradio's own themes name fonts that are looked for on the network.
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css_paths=[_FOLDER / "page.css"],
        head='<script src="/page.js"></script>',
    )
    # An open tab always waits for an answer: that it is cut off at the end is no error to be told.
    config = uvicorn.Config(Guard(app), log_level="critical", timeout_graceful_shutdown=1)
    return uvicorn.Server(config)


def _listening(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"Port {port} of {HOST} cannot be used ({error}). Give another one: --port 7861"
        ) from error
    return listener
