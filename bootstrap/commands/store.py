"""`aligner-bootstrap store` and `delete`: what a store holds, its upgrade, and taking corrections out of it for good."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bootstrap.commands.base import STORE_HELP, add_command, existing_store, require_store
from bootstrap.errors import StoreError
from bootstrap.records import SPLITS, now_ms

if TYPE_CHECKING:
    from bootstrap.database import Database

_UNITS_S = {"h": 3600, "d": 86_400, "w": 604_800}


def add(commands: Any) -> None:
    """Adds `store` and `delete`."""
    store = commands.add_parser("store", help="what a store holds, and its upgrade").add_subparsers(
        required=True, metavar="COMMAND"
    )
    status = add_command(
        store,
        "status",
        "show a store's revision and what it holds",
        "aligner-bootstrap store status --store corrections.db",
        _status,
    )
    upgrade = add_command(
        store,
        "upgrade",
        "bring a store to the newest revision",
        "aligner-bootstrap store upgrade --store corrections.db",
        _upgrade,
    )
    delete = add_command(
        commands,
        "delete",
        "delete corrections for good",
        "aligner-bootstrap delete --store corrections.db --older-than 90d",
        _delete,
    )
    _add_what_to_delete(delete)
    for parser in (status, upgrade, delete):
        parser.add_argument("--store", required=True, help=STORE_HELP)
        parser.add_argument("--json", action="store_true", help="print JSON")


def _add_what_to_delete(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--subject", help="everything of this subject that was collected until now")
    what.add_argument("--id", nargs="+", dest="ids", metavar="ID", help="these corrections")
    what.add_argument("--older-than", type=_age_ms, metavar="AGE", help="what was collected longer ago: 90d, 12h or 4w")
    parser.add_argument("--tenant", help="only in this tenant (default: in every tenant)")
    parser.add_argument(
        "--home", type=Path, help="folder of the registry whose reports go too (default: $ALIGNER_HOME)"
    )


def _status(arguments: argparse.Namespace) -> int:
    from bootstrap.store import CorrectionStore

    database = _existing(arguments.store)
    found: dict[str, Any] = {
        "store": database.name,
        "revision": database.revision(),
        "head": database.schema.head,
        "corrections": None,
        "feedback": None,
        "deleted": None,
    }
    if found["revision"] == found["head"]:
        store = CorrectionStore(arguments.store)
        found["corrections"] = {split: store.count(split) for split in SPLITS} | {"all": store.count()}
        found |= {"feedback": store.feedback_count(), "deleted": store.deleted_count()}
    print(json.dumps(found, indent=2) if arguments.json else _shown(found, arguments.store))
    return 0


def _shown(found: dict[str, Any], target: str) -> str:
    lines = [found["store"], f"revision     {found['revision'] or 'none: it is empty'}"]
    if found["corrections"] is None:
        return "\n".join(
            [*lines, f"Upgrade it to {found['head']} (back it up first):  aligner-bootstrap store upgrade --store ..."]
        )
    counts = {
        "corrections": found["corrections"]["all"],
        **{f"  {name}": found["corrections"][name] for name in SPLITS},
    }
    counts |= {"feedback": found["feedback"], "deleted": found["deleted"]}
    return "\n".join([*lines, *(f"{name:<12} {count:,}" for name, count in counts.items())])


def _upgrade(arguments: argparse.Namespace) -> int:
    from bootstrap.store import CorrectionStore

    database = _existing(arguments.store)
    before, head = database.revision(), database.schema.head
    CorrectionStore(arguments.store).close()
    if arguments.json:
        print(json.dumps({"store": database.name, "before": before, "revision": head}))
    else:
        print(
            f"{database.name} is at revision {head}" + ("." if before == head else f" (before: {before or 'empty'}).")
        )
    return 0


def _delete(arguments: argparse.Namespace) -> int:
    if arguments.ids and arguments.tenant is not None:
        raise StoreError("An id names one correction, whatever its tenant: leave out --tenant, or give --subject.")
    from aligner_chain.serving import home as default_home
    from bootstrap.report.forgetting import forget_examples, forget_exports, open_rounds

    before_ms = None if arguments.older_than is None else now_ms() - arguments.older_than
    store, home = existing_store(arguments.store), arguments.home or default_home()
    reports = forget_examples(home)  # first: should this be killed, what remains is found again in the store
    count = store.delete(
        ids=arguments.ids or (), subject=arguments.subject, tenant=arguments.tenant, before_ms=before_ms
    )
    told = {"deleted": count, "reports": reports, "exports": forget_exports(home, store), "rounds": open_rounds(home)}
    print(json.dumps(told) if arguments.json else "\n".join(_told(told, home)))
    return 0


def _told(told: Mapping[str, Any], home: Path) -> Iterator[str]:
    """What was deleted, and where copies may still be."""
    yield f"{told['deleted']:,} corrections are deleted."
    if told["reports"]:
        yield f"{told['reports']} files of examples and pages in {home / 'reports'} are removed. Pages without: aligner-bootstrap report"
    for name in told["exports"]:
        yield f"{home / 'exports' / name} had some of them and is removed; whoever was given a copy must be told."
    for number in told["rounds"]:
        yield f"Round {number} is not ended and may hold copies. Remove them:  aligner-bootstrap round abort {number}"


def _existing(target: str) -> Database:
    """The database, not upgraded."""
    from bootstrap.database import Database
    from bootstrap.store import SCHEMA

    require_store(target)
    return Database(target, SCHEMA, prepare=False)


def _age_ms(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,6})([hdw])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no age; write 90d, 12h or 4w")
    return int(found[1]) * _UNITS_S[found[2]] * 1000
