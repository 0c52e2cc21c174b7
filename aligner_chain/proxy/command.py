"""`aligner-chain serve`: the proxy as a process."""

from __future__ import annotations

import argparse
import json
import logging
import math
import signal
import socket
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from aligner_chain.aligner import Aligner
from aligner_chain.command_line import PORT, whole_number
from aligner_chain.errors import ConfigurationError, MissingExtraError
from aligner_chain.policy import Policy
from aligner_chain.proxy.settings import Limits, Settings, function_at
from aligner_chain.shared import hold

if TYPE_CHECKING:
    from collections.abc import Iterator

HELP = """\
Serves an OpenAI-compatible chat completions endpoint in front of another one. Whoever uses it as the base URL gets the
model's answers corrected. The text of an answer is sent once it was corrected and checked; tool calls, structured output,
refusals and reasoning pass as they are. All other paths below /v1 pass unchanged, and so does each client's own key.

/healthz, /readyz and /metrics (Prometheus) tell how it does; the log has a line of JSON for each request and each
correction, without texts and keys. SIGTERM lets running requests end."""

EXAMPLE = """\
example:
  aligner-chain serve --upstream https://api.openai.com/v1 --aligner path-or-hub-id
  aligner-chain serve --upstream http://127.0.0.1:8000/v1 --aligner http://127.0.0.1:8001/v1 --aligner-model aligner
  PYTHONPATH=. aligner-chain serve --upstream http://127.0.0.1:8000/v1 --on-correction collecting:submit --port 9000"""

_DEFAULTS, _LIMITS = Settings(upstream="http://127.0.0.1"), Limits()


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Adds the command to a command line."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "serve",
        help="an OpenAI-compatible endpoint that corrects another one's answers",
        description=HELP,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--upstream", required=True, metavar="URL", help="base URL of the model, such as http://host/v1"
    )
    parser.add_argument(
        "--aligner",
        nargs="+",
        metavar="ALIGNER",
        help="folder, hub id, or the address of each server that runs it (default: $ALIGNER_MODEL, then what $ALIGNER_HOME serves)",
    )
    parser.add_argument("--aligner-model", metavar="NAME", help="the name under which servers run the Aligner")
    parser.add_argument(
        "--checkpoint", help="folder or cached hub id of what servers run (default: the folder that they name)"
    )
    parser.add_argument("--template", help="template of a folder that has no aligner.json")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=PORT, default=8800, help="0: any that is free (default: %(default)s)")
    parser.add_argument("--only-chat", action="store_true", help="refuse all other paths, since they pass uncorrected")
    _add_corrections(parser)
    _add_limits(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Serves until it is told to stop."""
    given = {name: getattr(arguments, name) for name in ("upstream", "on_error", "strength", "timeout", "upstream_s")}
    settings = Settings(
        **given,
        aligner=_aligner(arguments),
        policy=Policy(thoughts=True) if arguments.thoughts else None,
        criteria=tuple(arguments.criteria) if arguments.criteria else None,
        on_correction=function_at(arguments.on_correction) if arguments.on_correction else None,
        only_chat=arguments.only_chat,
        keep_alive_s=arguments.keep_alive_s,
        limits=Limits(**{name: getattr(arguments, name) for name in Limits.__slots__}),
    )
    serve(settings, host=arguments.host, port=arguments.port)
    return 0


def serve(settings: Settings, *, host: str = "127.0.0.1", port: int = 8800) -> None:
    """Serves until SIGTERM or Ctrl-C, and returns when the running requests have ended. Logs to stderr, one object a line.

    Raises:
        MissingExtraError: The extra `proxy` is not installed.
        ConfigurationError: There is no Aligner, or the address cannot be listened at.
    """
    try:
        import uvicorn

        from aligner_chain.proxy.app import create_app
    except ImportError as error:
        raise MissingExtraError(error.name or "starlette", "proxy") from error
    with hold(settings.aligner):
        app = create_app(settings)
    _log_to_stderr()
    with _listening(host, port) as listener, _ended_by_signal():
        config = uvicorn.Config(app, **_server(settings.limits))
        uvicorn.Server(config).run(sockets=[listener])


def _server(limits: Limits) -> dict[str, Any]:
    return {
        "http": "h11",  # the one of its parsers that bounds the headers
        "h11_max_incomplete_event_size": limits.header_bytes,
        "ws": "none",
        "lifespan": "on",
        "access_log": False,
        "log_level": "warning",
        "server_header": False,
        "proxy_headers": False,
        # Longer than clients keep a connection, so that none sends a request into one that is just being closed.
        "timeout_keep_alive": 75,
        "timeout_graceful_shutdown": int(limits.grace_s),
    }


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named asyncio sends small pieces at once; else each waits for the client's word on the one before, 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    with listener:
        _listen(listener, host, port)
        shown, number = f"[{host}]" if ":" in host else host, listener.getsockname()[1]
        line = {"event": "listening", "base_url": f"http://{shown}:{number}/v1"}
        print(json.dumps(line), file=sys.stderr, flush=True)  # noqa: T201  (the first line of the log)
        yield listener


def _listen(listener: socket.socket, host: str, port: int) -> None:
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        raise ConfigurationError(f"{host}:{port} cannot be listened at: {error}. Choose another --port.") from error


@contextmanager
def _ended_by_signal() -> Iterator[None]:
    """SIGTERM and Ctrl-C end the block, with the exit code of a process that did what it was told."""

    class Ended(SystemExit):
        pass

    def end(*_: object) -> None:
        raise Ended(0)

    signals = (signal.SIGTERM, signal.SIGINT)
    before = {one: signal.signal(one, end) for one in signals}
    try:
        yield
    except Ended:
        pass
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _log_to_stderr() -> None:
    """Sends the lines of decisions and requests to stderr, bare, unless the application has set up their logs itself."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("aligner_chain.decisions", "aligner_chain.proxy"):
        log = logging.getLogger(name)
        if not log.hasHandlers():
            log.addHandler(handler)
            log.setLevel(logging.INFO)


def _add_corrections(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--on-error",
        choices=("raise", "pass_through"),
        default=_DEFAULTS.on_error,
        help="where a correction failed: an error, or the upstream's answer (default: %(default)s)",
    )
    parser.add_argument("--on-correction", metavar="MODULE:FUNCTION", help="is called with every Correction")
    parser.add_argument("--criteria", nargs="+", metavar="NAME", help="what to judge by (default: as trained)")
    parser.add_argument(
        "--strength", type=float, help="0: nothing is corrected, 1: everything (default: as calibrated)"
    )
    parser.add_argument(
        "--thoughts", action="store_true", help="answers begin with <think> ... </think>: leave that, correct the rest"
    )
    parser.add_argument("--timeout", type=_seconds, default=_DEFAULTS.timeout, metavar="S", help=_of("one correction"))
    parser.add_argument(
        "--upstream-timeout",
        dest="upstream_s",
        type=_seconds,
        default=_DEFAULTS.upstream_s,
        metavar="S",
        help=_of("the upstream's silence"),
    )
    parser.add_argument(
        "--keep-alive",
        dest="keep_alive_s",
        type=_seconds,
        default=_DEFAULTS.keep_alive_s,
        metavar="S",
        help=_of("a stream's silence, before a comment is sent"),
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    for option, name, kind, told in (
        ("--max-body", "body_bytes", whole_number(1), "bytes of a request's body"),
        ("--max-answer", "answer_bytes", whole_number(1), "bytes of an upstream's answer that is held"),
        ("--max-headers", "header_bytes", whole_number(1), "bytes of a request's headers"),
        ("--max-requests", "in_flight", whole_number(1), "requests at a time"),
        ("--body-timeout", "body_s", _seconds, "seconds in which a body must have come"),
        ("--request-timeout", "request_s", _seconds, "seconds for all of a request"),
        ("--grace", "grace_s", _seconds, "seconds that running requests have after SIGTERM"),
    ):
        default = getattr(_LIMITS, name)
        parser.add_argument(
            option, dest=name, type=kind, default=default, metavar="N", help=f"{told} (default: {default:g})"
        )


def _aligner(arguments: argparse.Namespace) -> Aligner | str | None:
    named: list[str] = arguments.aligner or []
    if any(one.startswith(("http://", "https://")) for one in named):
        if arguments.aligner_model is None:
            raise ConfigurationError(
                "--aligner names a server; say with --aligner-model under which name it serves it."
            )
        return Aligner.from_server(
            named, arguments.aligner_model, checkpoint=arguments.checkpoint, template=arguments.template
        )
    if arguments.aligner_model or arguments.checkpoint or len(named) > 1:
        raise ConfigurationError(
            "Several Aligners, --aligner-model and --checkpoint are for servers: --aligner http://host:8000/v1 "
            "--aligner-model NAME."
        )
    if named and arguments.template:
        return Aligner.from_pretrained(named[0], template=arguments.template)
    return named[0] if named else None


def _of(what: str) -> str:
    return f"seconds of {what} (default: %(default)g)"


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return number
