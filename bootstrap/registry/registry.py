"""The registry: saving versions, promoting pairs of them, and the way back."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, overload

from sqlalchemy import Connection

from aligner_chain.serving import home as default_home
from bootstrap.database import Database
from bootstrap.database.fences import Fence
from bootstrap.errors import RegistryError
from bootstrap.registry import catalogue, cleaning, folders, promoting, saving
from bootstrap.registry.catalogue import SEE_LIST, Catalogue
from bootstrap.registry.opening import open_database
from bootstrap.registry.promoting import Expected, Unchecked, check_expected, check_weights
from bootstrap.registry.publishing import Publication
from bootstrap.registry.values import Collected, Event, Kind, PairVersion, Servers, Synced, Verified, Version

GRACE_S = 3600.0
"""How long a process may go on reading weights that are not served any more, in seconds."""


class Registry:
    """Versions of upstreams and Aligners in one folder, and which pair of them is served.

    Threads and processes may share it. Whatever fails, the pair that is served stays as it was.

    Args:
        home: the folder, made if need be. Default: `$ALIGNER_HOME`, else the platform's data folder of this user.
        database: what the folder's models were made from and which are served: a file's path, or
            `postgresql://user:password@host/name`. Default: `home/registry.db`; of the default home `$ALIGNER_REGISTRY`,
            where it is set.
        publish: bring `served.json` up to date on opening, as `sync` does.

    Raises:
        RegistryError: the registry of this home is kept on a server, which was not named.
        StoreError: the database cannot be used. Every method raises it too.
    """

    def __init__(
        self,
        home: str | os.PathLike[str] | None = None,
        database: str | os.PathLike[str] | None = None,
        *,
        publish: bool = True,
    ) -> None:
        self.home = default_home() if home is None else Path(home).expanduser().absolute()
        self._database = open_database(self.home, database, may_look_up=home is None)
        self._catalogue, self._publication = Catalogue(self.home), Publication(self.home)
        if publish:
            self.sync()

    @property
    def database(self) -> Database:
        """The database, for those who keep their own tables of it: rounds, stages and leases."""
        return self._database

    # --- versions ----------------------------------------------------------------------------------------------

    def add(
        self,
        kind: Kind,
        write: Callable[[Path], object],
        manifest: Mapping[str, Any],
        *,
        fence: Fence | None = None,
    ) -> Version:
        """Saves a model as the next version of its kind.

        Args:
            kind: "upstream" or "aligner".
            write: writes the model's files into the empty folder that it is given.
            manifest: what the model was made from, as JSON.
            fence: is asked before the version gets its number.

        Raises:
            RegistryError: the files cannot be written, for instance because the disk is full. Nothing is left of them.
                What else `write` or the fence raises is passed on, and nothing is left then either.
        """
        return saving.save(self._database, self._catalogue, kind, write, manifest, fence)

    def versions(self, kind: Kind) -> list[Version]:
        """All versions of a kind, oldest first; also those whose weights were removed."""
        with self._database.read() as connection:
            return self._catalogue.versions(connection, kind)

    def version(self, kind: Kind, which: int | str) -> Version:
        """One version.

        Args:
            kind: "upstream" or "aligner".
            which: its number, or the alias of the pair that it is in: champion, previous or challenger.

        Raises:
            RegistryError: there is none, or the pair of this name has no upstream.
        """
        if not catalogue.is_number(which):
            found = getattr(self.pair(which), catalogue.known(kind))
            if found is None:
                raise RegistryError(f"The {which} is an Aligner alone: it has no upstream.\n{SEE_LIST}")
            return found  # type: ignore[no-any-return]
        with self._database.read() as connection:
            return self._catalogue.version(connection, kind, int(which))

    def verify(self, version: Version) -> Verified:
        """Reads every file of a version and compares it with what was noted when it was saved."""
        with folders.explaining_disk(self.home, f"{version.identity} could not be read"):
            return folders.compare(version, hashes=True)

    # --- pairs -------------------------------------------------------------------------------------------------

    def register_pair(
        self, upstream: Version | None, aligner: Version, *, figures: Mapping[str, Any], fence: Fence | None = None
    ) -> PairVersion:
        """Notes that two versions belong together, without serving them: the newest such pair is the challenger.

        Args:
            upstream: None where only an Aligner is to be served.
            aligner: the Aligner that was measured with `upstream`.
            figures: what was measured, as JSON.
            fence: is asked before the pair gets its number.

        Raises:
            RegistryError: a version is not in this registry.
        """
        json.dumps(figures, allow_nan=False)
        with self._database.write() as connection:
            if fence is not None:
                fence.check(connection)
            number = promoting.register(connection, self._catalogue, upstream, aligner, figures)
            return self._catalogue.pair(connection, number)

    def pair(self, which: int | str) -> PairVersion:
        """A pair by its number or its alias: champion (it is served), previous (a rollback returns to it), challenger.

        Raises:
            RegistryError: there is none.
        """
        with self._database.read() as connection:
            return self._catalogue.find_pair(connection, which)

    def aliases(self) -> dict[str, PairVersion]:
        """The pairs that have a name: champion, previous and challenger, as far as there are such."""
        with self._database.read() as connection:
            named = catalogue.aliases(connection)
            return {name: self._catalogue.pair(connection, number) for name, number in named.items()}

    def pairs(self) -> list[PairVersion]:
        """All pairs, oldest first, served or not."""
        with self._database.read() as connection:
            return self._catalogue.pairs(connection)

    @overload
    def promote(
        self,
        pair: PairVersion,
        /,
        *,
        expected: Expected = ...,
        fence: Fence | None = ...,
        servers: Servers | None = ...,
    ) -> PairVersion: ...

    @overload
    def promote(
        self,
        upstream: Version | None,
        aligner: Version,
        /,
        *,
        figures: Mapping[str, Any],
        expected: Expected = ...,
        fence: Fence | None = ...,
        servers: Servers | None = ...,
    ) -> PairVersion: ...

    def promote(
        self,
        pair: PairVersion | Version | None,
        aligner: Version | None = None,
        /,
        *,
        figures: Mapping[str, Any] | None = None,
        expected: Expected = Unchecked.ANY_PAIR,
        fence: Fence | None = None,
        servers: Servers | None = None,
    ) -> PairVersion:
        """Serves a pair from now on, its upstream and its Aligner together.

        Give a pair that is registered, or an upstream and an Aligner with their figures, which are registered then. A
        registered pair that is served already is no error: what was killed after its promotion can be run again.

        Args:
            pair: the pair, or its upstream (None where only an Aligner is served).
            aligner: the Aligner that was measured with the upstream.
            figures: what they were promoted on, as JSON.
            expected: the pair that must be served until now (None: none). Default: whichever is.
            fence: is asked in the transaction that promotes.
            servers: run the Aligner already; nobody looks here whether they do (`bootstrap.rollout` does). None: each
                application loads it.

        Raises:
            RegistryError: a version is not in this registry or not as it was saved (files are missing or of another
                size), another pair than `expected` is served, or `served.json` cannot be written.
        """
        json.dumps(figures, allow_nan=False)

        def record(connection: Connection) -> int:
            if fence is not None:
                fence.check(connection)
            before = self._catalogue.head(connection)
            if (
                isinstance(pair, PairVersion)
                and before
                and (before.pair.number, before.servers) == (pair.number, servers)
            ):
                return before.number
            check_expected(expected, before)
            if isinstance(pair, PairVersion):
                number = promoting.registered(connection, self._catalogue, pair)
            elif aligner is None or figures is None:
                raise TypeError("promote takes a registered pair, or an upstream, an Aligner and their figures")
            else:
                number = promoting.register(connection, self._catalogue, pair, aligner, figures)
            return promoting.promotion(connection, self._catalogue.pair(connection, number), servers, before)

        return self._serve(record)

    def served(self) -> PairVersion | None:
        """The pair that is served, or None where none was ever promoted."""
        event = self.event()
        return event.pair if event else None

    def event(self) -> Event | None:
        """The promotion or rollback that made what is served, or None where nothing ever was."""
        with self._database.read() as connection:
            return self._catalogue.head(connection)

    def event_before(self) -> Event:
        """What a rollback returns to.

        Raises:
            RegistryError: there is no such pair.
        """
        with self._database.read() as connection:
            return self._catalogue.before(connection)

    def rollback(self, *, expected: Expected = Unchecked.ANY_PAIR, fence: Fence | None = None) -> PairVersion:
        """Serves again what was served before the present pair was promoted; called again, what was before that.

        Where its Aligner ran on servers, nobody looks here whether it still does (`bootstrap.rollout` does).

        Args:
            expected: the pair that must be served until now. Default: whichever is.
            fence: is asked in the transaction that goes back.

        Raises:
            RegistryError: there is no such pair, its weights are gone, or another pair than `expected` is served.
        """

        def record(connection: Connection) -> int:
            if fence is not None:
                fence.check(connection)
            check_expected(expected, self._catalogue.head(connection))
            return promoting.rollback(connection, self._catalogue)

        return self._serve(record)

    def history(self) -> list[Event]:
        """Every promotion and rollback, oldest first."""
        with self._database.read() as connection:
            return list(self._catalogue.events(connection))

    # --- upkeep ------------------------------------------------------------------------------------------------

    def sync(self) -> Synced:
        """Makes `served.json` say what the database says: where it is missing, old or was edited, it is written anew.

        Raises:
            RegistryError: it cannot be read or written.
        """
        with folders.explaining_disk(self.home, "The pair could not be published"):
            with self._database.read() as connection:
                synced = self._compare(connection)
            if synced.pair is None or synced.found == "current" or synced.gone:
                return synced
            with self._publication.staged() as staged, self._database.write() as connection:
                event = self._catalogue.last(connection)
                self._publication.write(staged, event)
                self._publication.publish(staged)
        return replace(synced, pair=event.pair, written=True)

    def collect_garbage(self, keep: int = 3, *, dry_run: bool = False, grace_s: float = GRACE_S) -> Collected:
        """Removes the weights of versions that nobody uses. Their rows stay, so that no number is given twice.

        In use are the champion, the previous pair, the challenger, what was served last, what an unfinished round may
        read, and what was served or saved a moment ago, since a process may still be loading it.

        Args:
            keep: so many pairs that were served last stay.
            dry_run: only say what would be removed.
            grace_s: how long a moment is, in seconds.

        Raises:
            RegistryError: a folder cannot be removed; calling it again goes on there.
        """
        if keep < 0 or grace_s < 0:
            raise ValueError(f"keep and grace_s must not be negative; they are {keep} and {grace_s}")
        since = datetime.fromtimestamp(max(0.0, time.time() - grace_s), UTC)
        with self._database.read() if dry_run else self._database.write() as connection:
            used = cleaning.in_use(connection, self._catalogue, keep=keep, since=since)
            unused = cleaning.unused(connection, self._catalogue, used)
            if not dry_run:
                cleaning.mark_removed(connection, unused)
        with folders.explaining_disk(self.home, "Weights could not be removed"):
            size = sum(folders.size_of(version.path) for version in unused)
            for version in [] if dry_run else unused:  # after the commit: none of them can be promoted any more
                folders.remove(version.path)
        return Collected(removed=tuple(unused), size=size, kept=used)

    # --- inside ------------------------------------------------------------------------------------------------

    def _serve(self, record: Callable[[Connection], int]) -> PairVersion:
        """Records a change of what is served by `record`, which returns the event's id, and publishes it."""
        problem = "The pair could not be published"
        with folders.explaining_disk(self.home, problem), self._publication.staged() as staged:
            with self._database.write() as connection:
                event = record(connection)
                served = self._catalogue.last(connection)
                check_weights(served.pair)
                self._publication.write(staged, served)  # before the commit: a full disk must stop it here
            # Again a writer's lock: of several promotions at once the last to be committed must be the one published.
            with self._database.write() as connection:
                if self._catalogue.last(connection).number == event:
                    self._publication.publish(staged)
        return served.pair

    def _compare(self, connection: Connection) -> Synced:
        """How `served.json` is, beside what the database says."""
        event = self._catalogue.head(connection)
        if event is None:
            return Synced(found="unrecorded", written=False, pair=None)
        found = self._publication.found(event, self._catalogue.events(connection))
        gone = tuple(version.identity for version in event.pair.versions if not version.path.is_dir())
        return Synced(found=found, written=False, pair=event.pair, gone=gone)
