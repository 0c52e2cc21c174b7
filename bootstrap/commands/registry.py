"""`aligner-bootstrap registry`, `promote` and `rollback`: what there is, what is served, and the ways in and out."""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner_chain.command_line import whole_number
from bootstrap.commands.base import add_command, home_of, say_to_stderr
from bootstrap.errors import RegistryError

if TYPE_CHECKING:
    from bootstrap.registry import Event, PairVersion, Registry, Version
    from bootstrap.registry.exporting import Exported

_FAULTY = 3


def add(commands: Any) -> None:
    """Adds `registry`, `promote` and `rollback`."""
    registry = commands.add_parser("registry", help="models, pairs of them, and what is served").add_subparsers(
        required=True, metavar="COMMAND"
    )
    start = "aligner-bootstrap registry"
    list_ = add_command(registry, "list", "list pairs, versions and what is served", f"{start} list", _list)
    verify = add_command(registry, "verify", "read all weights and compare their hashes", f"{start} verify", _verify)
    gc = add_command(registry, "gc", "remove weights that nobody uses", f"{start} gc --dry-run", _gc)
    sync = add_command(registry, "sync", "write served.json as the database says", f"{start} sync", _sync)
    export = add_command(
        registry,
        "export",
        "write a model to a folder of its own",
        f"{start} export --aligner champion --out out",
        _export,
    )
    push = add_command(
        registry,
        "push",
        "upload a model to the Hub",
        f"{start} push --aligner champion --repo user/name --private",
        _push,
    )
    pull = add_command(
        registry, "pull", "download a model from the Hub, to be served later",
        f"{start} pull --kind aligner --repo user/name", _pull,
    )  # fmt: skip
    promote = add_command(
        commands, "promote", "serve a registered pair", "aligner-bootstrap promote challenger", _promote
    )
    back = add_command(
        commands, "rollback", "serve the pair before this one again", "aligner-bootstrap rollback", _rollback
    )
    for parser in (list_, verify, gc, sync, export, push, pull, promote, back):
        parser.add_argument("--home", type=Path, help="folder of the registry (default: $ALIGNER_HOME)")
        parser.add_argument("--database", metavar="URL", help="its database (default: HOME/registry.db, see the docs)")
        parser.add_argument("--json", action="store_true", help="print JSON")
    gc.add_argument(
        "--keep", type=whole_number(), default=3, metavar="N", help="pairs served last that stay (default: 3)"
    )
    gc.add_argument(
        "--grace", type=whole_number(), default=60, metavar="MINUTES", help="spare what was served or saved so lately"
    )
    gc.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    for parser in (export, push):
        _add_what_leaves(parser)
    export.add_argument("--out", type=Path, required=True, help="a new or empty folder")
    for parser in (push, pull):
        parser.add_argument("--repo", required=True, help="user/name")
    push.add_argument("--private", action="store_true", help="nobody else may see it")
    pull.add_argument("--kind", choices=("upstream", "aligner"), required=True)
    pull.add_argument("--revision", help="branch, tag or commit (default: the main branch)")
    promote.add_argument("pair", metavar="PAIR", help="its number, or challenger or previous")
    promote.add_argument("--expected", metavar="PAIR", help="only if this pair is served until now")
    _add_servers(promote)


def _add_servers(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--server", action="append", default=[], metavar="URL",
        help="model server that runs the Aligner, or loads it now if it is an adapter; once for each (default: those of "
        "the served pair, if it has any)",
    )  # fmt: skip
    where.add_argument("--in-process", action="store_true", help="on no server: each application loads the Aligner")
    parser.add_argument("--path-on-server", metavar="FOLDER", help="the registry's folder as the servers see it")
    parser.add_argument(
        "--keep",
        type=whole_number(),
        default=1,
        metavar="N",
        help="earlier adapters that stay loaded there (default: 1)",
    )
    parser.add_argument(
        "--grace",
        type=whole_number(),
        default=3,
        metavar="SECONDS",
        help="without a request before others are unloaded",
    )


def _add_what_leaves(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    for kind in ("upstream", "aligner"):
        what.add_argument(
            f"--{kind}", metavar="WHICH", help=f"the {kind} of champion, previous, challenger, or its number"
        )
    parser.add_argument("--merge", action="store_true", help="write whole weights where it is an adapter")
    parser.add_argument("--base", help="the adapter's base: a folder to merge it into, or what it is called on the Hub")
    for name, of in (("licence", "these weights"), ("base-licence", "the base"), ("data-licence", "the training data")):
        parser.add_argument(f"--{name}", metavar="NAME", help=f"licence of {of}, for the model card")
    parser.add_argument(
        "--limit", action="append", metavar="SENTENCE", help="a limit that you know of, for the model card"
    )


def _opened(arguments: argparse.Namespace, *, publish: bool = True) -> Registry:
    from bootstrap.registry import Registry

    return Registry(home_of(arguments), arguments.database, publish=publish)


def _told(arguments: argparse.Namespace, found: dict[str, Any], *lines: str) -> None:
    print(json.dumps(found, indent=2) if arguments.json else "\n".join(lines))


def _list(arguments: argparse.Namespace) -> int:
    registry = _opened(arguments)
    served, aliases = registry.served(), registry.aliases()
    history = [
        {
            "time": event.time.isoformat(timespec="seconds"),
            "action": event.action,
            **_of_pair(event.pair),
            "servers": _urls(event),
        }
        for event in registry.history()
    ]
    versions = [_of_version(one) for one in (*registry.versions("upstream"), *registry.versions("aligner"))]
    found = {
        "home": str(registry.home),
        "database": registry.database.name,
        "served": served and served.number,
        "aliases": {name: pair.number for name, pair in aliases.items()},
        "history": history,
        "pairs": [{**_of_pair(pair), "figures": pair.figures} for pair in registry.pairs()],
        "versions": versions,
    }
    lines = [_line(event) for event in history]
    removed = [version["version"] for version in versions if version["removed"]]
    lines += [f"{name:<10} pair {pair.number}" for name, pair in aliases.items()]
    lines += [f"Weights removed: {', '.join(removed)}"] if removed else []
    _told(arguments, found, *lines, f"Served from {registry.home}: {f'pair {served.number}' if served else 'nothing'}")
    return 0


def _line(event: dict[str, Any]) -> str:
    models = f"{event['upstream']} with {event['aligner']}" if event["upstream"] else f"{event['aligner']} alone"
    line = f"{event['time']}  {event['action']:<9} pair {event['pair']}: {models}"
    return f"{line} on {', '.join(event['servers'])}" if event["servers"] else line


def _of_pair(pair: PairVersion) -> dict[str, Any]:
    upstream = pair.upstream.identity if pair.upstream else None
    return {"pair": pair.number, "upstream": upstream, "aligner": pair.aligner.identity}


def _of_version(version: Version) -> dict[str, Any]:
    return {
        "version": version.identity,
        "created": version.created.isoformat(timespec="seconds"),
        "bytes": None if version.files is None else sum(file.size for file in version.files.values()),
        "removed": version.removed and version.removed.isoformat(timespec="seconds"),
    }


def _verify(arguments: argparse.Namespace) -> int:
    registry = _opened(arguments)
    there = [one for one in (*registry.versions("upstream"), *registry.versions("aligner")) if one.removed is None]
    checked = [registry.verify(version) for version in there]
    faults = {
        one.version.identity: {"missing": one.missing, "changed": one.changed, "added": one.added}
        for one in checked
        if not one.good
    }
    lines = [
        f"{identity}: " + "; ".join(f"{what} {', '.join(names)}" for what, names in fault.items() if names)
        for identity, fault in faults.items()
    ]
    unknown = [one.version.identity for one in checked if not one.recorded]
    lines += [f"No hashes were noted of {', '.join(unknown)}."] if unknown else []
    summary = f"{len(checked) - len(faults)} of {len(checked)} versions are as they were saved."
    _told(arguments, {"versions": len(checked), "faults": faults, "unrecorded": unknown}, *lines, summary)
    return _FAULTY if faults else 0


def _gc(arguments: argparse.Namespace) -> int:
    registry = _opened(arguments)
    done = registry.collect_garbage(arguments.keep, dry_run=arguments.dry_run, grace_s=60.0 * arguments.grace)
    removed = [version.identity for version in done.removed]
    found = {"removed": removed, "bytes": done.size, "kept": dict(done.kept), "dry_run": arguments.dry_run}
    verb = "would be removed" if arguments.dry_run else "removed"
    lines = [f"kept {identity}: {reason}" for identity, reason in done.kept.items()]
    _told(arguments, found, *lines, f"{', '.join(removed) or 'Nothing'} {verb} ({done.size / 2**20:,.1f} MiB).")
    return 0


def _sync(arguments: argparse.Namespace) -> int:
    synced = _opened(arguments, publish=False).sync()
    pair = synced.pair and synced.pair.number
    if synced.gone:
        raise RegistryError(
            f"served.json was left as it is: pair {pair} is served, and the weights of {', '.join(synced.gone)} are not "
            "in this home.\nPut the folder back from a copy, or serve another pair:  aligner-bootstrap rollback"
        )
    told = {
        "current": f"served.json serves pair {pair}, as the database says.",
        "unrecorded": "No pair was ever promoted; nothing was written.",
    }
    found = {"found": synced.found, "written": synced.written, "pair": pair}
    _told(arguments, found, told.get(synced.found, f"served.json was {synced.found}; it serves pair {pair} now."))
    return 0


def _leaving(arguments: argparse.Namespace, registry: Registry) -> tuple[Version, PairVersion | None]:
    """The version that is asked for, and the pair whose figures tell of it: the newest that it is in."""
    version = (
        registry.version("upstream", arguments.upstream)
        if arguments.upstream
        else registry.version("aligner", arguments.aligner)
    )
    pairs = [pair for pair in registry.pairs() if version.identity in [one.identity for one in pair.versions]]
    return version, pairs[-1] if pairs else None


def _written(
    arguments: argparse.Namespace, version: Version, pair: PairVersion | None, out: Path, at: str | None = None
) -> Exported:
    from bootstrap.registry import export
    from bootstrap.registry.exporting import base_of

    def merge(folder: Path, target: Path) -> None:
        from bootstrap.merging import merge_adapter

        merge_adapter(folder, target, base=arguments.base or base_of(version))

    base, version = None if arguments.merge else arguments.base, _noted(arguments, version)
    return export(version, out, pair=pair, merge=merge if arguments.merge else None, base=base, at=at)


def _noted(arguments: argparse.Namespace, version: Version) -> Version:
    """The version with what the command says of it, for its card, in place of what its manifest does."""
    said = {"licence": arguments.licence, "base_licence": arguments.base_licence, "limits": arguments.limit}
    manifest = {**version.manifest, **{name: value for name, value in said.items() if value}}
    if arguments.data_licence:
        manifest["data"] = {**(version.manifest.get("data") or {}), "licence": arguments.data_licence}
    return replace(version, manifest=manifest)


def _what_left(written: Exported) -> tuple[dict[str, Any], str]:
    """What is told of an export, for machines and for people."""
    left_out = f" Left out, being no part of the model: {', '.join(written.left_out)}." if written.left_out else ""
    return {"merged": written.merged, "left_out": written.left_out}, left_out


def _export(arguments: argparse.Namespace) -> int:
    version, pair = _leaving(arguments, _opened(arguments))
    written = _written(arguments, version, pair, arguments.out)
    told, left_out = _what_left(written)
    merged = ", its adapter merged" if written.merged else ""
    found = {"version": version.identity, "out": str(arguments.out), **told}
    _told(arguments, found, f"{version.identity} is in {arguments.out}{merged}.{left_out}")
    return 0


def _push(arguments: argparse.Namespace) -> int:
    from bootstrap.registry.hub import push

    version, pair = _leaving(arguments, _opened(arguments))
    with tempfile.TemporaryDirectory(prefix="aligner-push-") as folder:
        out = Path(folder) / "model"
        told, left_out = _what_left(_written(arguments, version, pair, out, arguments.repo))
        url = push(out, arguments.repo, private=arguments.private, message=f"{version.identity} of aligner-chain")
    found = {"version": version.identity, "repo": arguments.repo, **told, "url": url}
    _told(arguments, found, f"{version.identity} is pushed: {url}.{left_out}")
    return 0


def _pull(arguments: argparse.Namespace) -> int:
    from bootstrap.registry import Registry
    from bootstrap.registry.hub import pull

    version = pull(Registry(arguments.home, arguments.database), arguments.kind, arguments.repo, arguments.revision)
    source = version.manifest["source"]
    found = {"version": version.identity, "path": str(version.path), **source}
    _told(arguments, found, f"{arguments.repo} ({source['revision']}) is {version.identity} now; it is not served.")
    return 0


def _promote(arguments: argparse.Namespace) -> int:
    from bootstrap import rollout
    from bootstrap.registry.promoting import Unchecked

    registry = _opened(arguments)
    pair = registry.pair(arguments.pair)
    expected = Unchecked.ANY_PAIR if arguments.expected is None else registry.pair(arguments.expected)
    servers, home = tuple(arguments.server), arguments.path_on_server
    where = rollout.Where(urls=servers, home=home, in_process=arguments.in_process)
    promoted = rollout.promote(
        registry,
        pair,
        where,
        expected=expected,
        keep=arguments.keep,
        grace_s=arguments.grace,
        say=say_to_stderr,
    )
    _tell_served(arguments, registry, promoted, "is served")
    return 0


def _rollback(arguments: argparse.Namespace) -> int:
    from bootstrap import rollout

    registry = _opened(arguments)
    _tell_served(arguments, registry, rollout.rollback(registry), "is served again")
    return 0


def _tell_served(arguments: argparse.Namespace, registry: Registry, pair: PairVersion, done: str) -> None:
    servers = _urls(registry.event())
    found = {"served": pair.number, "aligner": pair.aligner.identity, "servers": servers}
    on = f" on {', '.join(servers)}" if servers else ""
    _told(arguments, found, f"Pair {pair.number} {done} ({pair.aligner.identity}{on}).")


def _urls(event: Event | None) -> list[str]:
    return list(event.servers.urls) if event and event.servers else []
