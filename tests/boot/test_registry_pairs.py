"""What is promoted, by whom, and what is removed: the same on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import Connection, insert, select, update

from aligner_chain.serving import read_served
from bootstrap.cli import main
from bootstrap.errors import BootstrapError, RegistryError
from bootstrap.registry import PairVersion, Registry, Version
from bootstrap.registry.tables import EVENTS, LEASES, ROUNDS, STAGES


class LostError(BootstrapError):
    pass


class Held:
    """A fence over the row of a lease."""

    def __init__(self, token: int) -> None:
        self.token = token

    def check(self, connection: Connection) -> None:
        if connection.execute(select(LEASES.c.token)).scalar_one() != self.token:
            raise LostError(f"token {self.token} is not the newest")


def save(registry: Registry, kind: Any = "aligner", **arguments: Any) -> Version:
    return registry.add(kind, lambda folder: (folder / "model.safetensors").write_text("weights"), {}, **arguments)


def register(registry: Registry, **arguments: Any) -> PairVersion:
    return registry.register_pair(save(registry, "upstream"), save(registry), **{"figures": {}, **arguments})


def promote(registry: Registry) -> PairVersion:
    return registry.promote(register(registry))


def named(registry: Registry) -> dict[str, int]:
    return {name: pair.number for name, pair in registry.aliases().items()}


def weights(registry: Registry, kind: Any = "aligner") -> list[int]:
    return sorted(int(folder.name) for folder in (registry.home / kind).iterdir())


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "home")


@pytest.fixture
def either(tmp_path: Path, url: str) -> Iterator[Registry]:
    """A registry on each kind of database."""
    made = Registry(tmp_path / "home", url)
    yield made
    made.database.close()


def test_a_registered_pair_is_the_challenger_until_it_is_served(either, url):
    assert named(either) == {}
    first = register(either, figures={"right": 0.5})
    assert (named(either), either.served(), read_served(either.home)) == ({"challenger": 1}, None, None)
    assert either.promote(either.pair("challenger"), expected=None) == first
    second = promote(either)
    assert named(either) == {"champion": 2, "previous": 1}
    third = register(either)
    assert named(either) == {"champion": 2, "previous": 1, "challenger": 3}
    assert either.promote(second, expected=first) == second  # a stage that was killed after it is run again
    assert [event.pair for event in either.history()] == [first, second]
    assert either.promote(third) == third
    assert either.rollback() == second
    assert named(either) == {"champion": 2, "previous": 1}
    assert Registry(either.home, url).pair(1).figures == {"right": 0.5}
    assert read_served(either.home).upstream.identity == "upstream@2"
    assert either.version("aligner", "previous") == either.version("aligner", 1) == first.aligner
    with pytest.raises(RegistryError, match=r"champion \(pair 2\), previous \(pair 1\)"):
        either.pair("challenger")


def test_who_lost_its_lease_changes_nothing(either):
    first, waiting = promote(either), register(either)
    with either.database.write() as connection:
        connection.execute(insert(LEASES), {"name": "round", "owner": "a", "token": 7, "expires_ms": 0})
    before = (either.home / "served.json").read_bytes()
    stale = Held(6)
    for attempt in (
        lambda: either.promote(waiting, fence=stale),
        lambda: either.promote(first, fence=stale),
        lambda: either.promote(waiting.upstream, waiting.aligner, figures={}, fence=stale),
        lambda: either.register_pair(None, waiting.aligner, figures={}, fence=stale),
        lambda: either.rollback(fence=stale),
        lambda: save(either, fence=stale),
    ):
        with pytest.raises(LostError):
            attempt()
    assert (either.served(), len(either.pairs()), len(either.history())) == (first, 2, 1)
    assert (weights(either), (either.home / "served.json").read_bytes()) == ([1, 2], before)
    assert either.promote(waiting, expected=first, fence=Held(7)) == waiting


KILLED = """
import os, signal, sys
from bootstrap.registry import Registry

class Kill:
    def check(self, connection):
        if sys.argv[3] == "before":
            os.kill(os.getpid(), signal.SIGKILL)

registry = Registry(sys.argv[1], sys.argv[2])
os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
registry.promote(registry.pair("challenger"), fence=Kill())
"""


@pytest.mark.parametrize("point", ["before", "after"])
def test_a_killed_promotion_happened_or_did_not(tmp_path, postgres, run_python, point):
    url = postgres.new_database()
    registry = Registry(tmp_path / "home", url)
    first, second = promote(registry), register(registry)
    assert run_python(KILLED, registry.home, url, point).returncode == -signal.SIGKILL
    assert read_served(registry.home).pair == "1"
    assert registry.sync().found == {"before": "current", "after": "old"}[point]
    assert registry.served() == {"before": first, "after": second}[point]
    assert read_served(registry.home).pair == str(registry.served().number)
    registry.database.close()


RACE = """
import multiprocessing, sys
from bootstrap.errors import RegistryError
from bootstrap.registry import Registry

def work(barrier, home, url, mine, wins):
    registry = Registry(home, url)
    for turn in range(4):
        before = registry.served()
        barrier.wait()
        try:
            registry.promote(registry.pair(2 + 2 * turn + mine), expected=before)
            wins[turn] += 1
        except RegistryError as error:
            assert "was expected" in str(error), error
        barrier.wait()

if __name__ == "__main__":
    fork = multiprocessing.get_context("fork")
    barrier, wins = fork.Barrier(2), fork.Array("i", 4)
    processes = [fork.Process(target=work, args=(barrier, *sys.argv[1:], mine, wins)) for mine in range(2)]
    [process.start() for process in processes]
    [process.join() for process in processes]
    print(list(wins))
    sys.exit(max(process.exitcode for process in processes))
"""


def test_of_two_processes_that_promote_at_once_one_wins(either, url, run_python):
    first = promote(either)
    for _ in range(8):
        either.register_pair(None, first.aligner, figures={})
    done = run_python(RACE, either.home, url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[1, 1, 1, 1]"
    assert [event.pair.number // 2 for event in either.history()] == [0, 1, 2, 3, 4]
    assert read_served(either.home).pair == str(either.served().number)


def test_sync_says_what_it_found_and_mends_it(registry):
    served = registry.home / "served.json"
    assert (registry.sync().found, served.exists()) == ("unrecorded", False)
    promote(registry)
    old = served.read_bytes()
    pair = promote(registry)
    right = served.read_bytes()
    for found, content in (("missing", None), ("old", old), ("edited", b'{"pair": "9"}'), ("edited", b"\xff")):
        served.unlink() if content is None else served.write_bytes(content)
        synced = registry.sync()
        assert (synced.found, synced.written, synced.pair) == (found, True, pair)
        assert served.read_bytes() == right
    assert (registry.sync().found, registry.sync().written) == ("current", False)
    shutil.rmtree(pair.aligner.path)
    served.write_bytes(old)
    assert (registry.sync().gone, served.read_bytes()) == (("aligner@2",), old)  # better the old pair than none


def test_a_changed_version_is_found_and_not_promoted(registry):
    pair = register(registry)
    file = pair.aligner.path / "model.safetensors"
    assert registry.verify(pair.aligner).good
    file.write_text("WEIGHTS")
    (file.parent / "more").touch()
    found = registry.verify(pair.aligner)
    assert (found.good, found.changed, found.added) == (False, ("model.safetensors",), ("more",))
    file.write_text("cut")
    with pytest.raises(RegistryError, match=r"aligner@1 is not as it was saved: model\.safetensors missing or changed"):
        registry.promote(pair)
    file.unlink()
    assert registry.verify(pair.aligner).missing == ("model.safetensors",)
    assert registry.served() is None


def test_an_alien_pair_is_not_promoted(registry, tmp_path):
    register(registry)
    with pytest.raises(RegistryError, match="is not upstream of the registry"):
        registry.promote(register(Registry(tmp_path / "other")))


def test_gc_removes_what_nobody_uses(registry):
    for _ in range(6):
        promote(registry)
    lone, challenger = save(registry), register(registry)
    assert registry.collect_garbage(2).removed == ()  # all of it is young
    planned = registry.collect_garbage(2, dry_run=True, grace_s=0)
    assert (len(weights(registry)), registry.version("aligner", 1).removed) == (8, None)
    done = registry.collect_garbage(2, grace_s=0)
    assert done == planned
    assert done.size == 9 * len("weights")
    assert weights(registry, "upstream") == [5, 6, 7]
    assert weights(registry) == [5, 6, 8]
    assert done.kept == {
        **dict.fromkeys(("upstream@6", "aligner@6"), "champion"),
        **dict.fromkeys(("upstream@5", "aligner@5"), "previous"),
        **dict.fromkeys((challenger.upstream.identity, challenger.aligner.identity), "challenger"),
    }
    assert registry.version("aligner", lone.number).removed is not None
    assert registry.rollback().number == 5
    with pytest.raises(RegistryError, match=r"weights of upstream@4 are gone: they were removed as unused on 20"):
        registry.rollback()
    with pytest.raises(RegistryError, match="removed as unused"):
        registry.promote(registry.pair(1))
    assert save(registry).number == 9


@pytest.mark.parametrize("grace_s", [1e12, float("inf")])
def test_a_grace_from_before_all_clocks_spares_everything(registry, grace_s):
    save(registry)
    promote(registry)
    assert registry.collect_garbage(0, grace_s=grace_s).removed == ()


def test_gc_goes_on_where_it_was_killed(registry):
    promote(registry)
    lone = save(registry)
    registry.collect_garbage(grace_s=0)
    lone.path.mkdir()  # the row is marked before the folder is removed
    assert [version.identity for version in registry.collect_garbage(grace_s=0).removed] == ["aligner@2"]
    assert weights(registry) == [1]


def test_gc_keeps_what_was_served_a_moment_ago(registry):
    for _ in range(4):
        promote(registry)
    with registry.database.write() as connection:
        for number, hour in ((1, "01"), (2, "02")):
            connection.execute(
                update(EVENTS).where(EVENTS.c.id == number).values(time=f"2020-01-01T{hour}:00:00+00:00")
            )
    kept = registry.collect_garbage(0, dry_run=True).kept
    assert kept["upstream@2"] == "served until a moment ago"
    assert kept["upstream@1"] == "saved a moment ago"


def test_gc_keeps_what_an_unfinished_round_may_read(either):
    for _ in range(4):
        promote(either)
    candidate = save(either, "upstream")
    with either.database.write() as connection:
        row = {"status": "running", "config_hash": "", "reason": "", "created_ms": 0}
        connection.execute(insert(ROUNDS), {"number": 1, "parent": 1, **row})
        stage = {"attempt": 1, "status": "done", "sha256": "", "error": "", "started_ms": 0}
        result = {"version": "aligner@2", "note": "upstream@77"}
        connection.execute(insert(STAGES), {"round": 1, "stage": "train", "result": result, **stage})
    kept = either.collect_garbage(1, grace_s=0).kept
    assert kept["upstream@1"] == kept["aligner@2"] == "round 1 is not finished"
    assert kept[candidate.identity] == "newer than what was served, and a round is not finished"
    assert weights(either, "upstream") == [1, 3, 4, 5]
    with either.database.write() as connection:
        connection.execute(update(ROUNDS).values(status="promoted", ended_ms=1))
    assert len(either.collect_garbage(1, grace_s=0).removed) == 4
    assert weights(either, "upstream") == [3, 4]


class Life(RuleBasedStateMachine):
    """Any order of what people and rounds do; what is served and what a rollback returns to is never removed."""

    template: Path
    count = 0

    @initialize()
    def start(self) -> None:
        Life.count += 1
        home = shutil.copytree(self.template, self.template.with_name(f"life-{Life.count}"))
        self.registry = Registry(home)
        self.numbers: list[int] = []
        promote(self.registry)

    @rule(alone=st.booleans())
    def register(self, alone: bool) -> None:
        upstream = None if alone else save(self.registry, "upstream")
        aligner = save(self.registry)
        self.numbers.append(aligner.number)
        self.registry.register_pair(upstream, aligner, figures={})

    @rule(data=st.data())
    def promote(self, data: st.DataObject) -> None:
        pair = data.draw(st.sampled_from(self.registry.pairs()))
        there = all(version.path.is_dir() for version in pair.versions)
        try:
            self.registry.promote(pair)
        except RegistryError:
            assert not there
        else:
            assert there
            assert self.registry.served() == pair

    @rule()
    def rollback(self) -> None:
        aliases = self.registry.aliases()
        try:
            assert self.registry.rollback() == aliases["previous"]
        except (RegistryError, KeyError):
            assert "previous" not in aliases or any(one.removed for one in aliases["previous"].versions)

    @rule(keep=st.integers(0, 3))
    def collect(self, keep: int) -> None:
        latest = list(dict.fromkeys(event.pair.number for event in reversed(self.registry.history())))[:keep]
        pairs = [*self.registry.aliases().values(), *map(self.registry.pair, latest)]
        there = {version.path for pair in pairs for version in pair.versions if version.path.is_dir()}
        self.registry.collect_garbage(keep, grace_s=0)
        assert all(path.is_dir() for path in there)

    @invariant()
    def what_is_served_can_be_loaded(self) -> None:
        if hasattr(self, "registry"):
            served = read_served(self.registry.home)
            assert served.pair == str(self.registry.served().number)
            assert served.aligner.path.is_dir()
            assert self.numbers == sorted(set(self.numbers))


def test_whatever_happens_the_served_pair_is_whole(tmp_path):
    Life.template = tmp_path / "template"
    Registry(Life.template).database.close()
    short = settings(max_examples=6, stateful_step_count=12, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(Life, settings=short)


def test_an_old_registry_is_upgraded_and_still_rolls_back(either, url):
    first, second = promote(either), promote(either)
    with either.database.write() as connection:
        for column in ("files", "removed"):  # as revision 0002 left it
            connection.exec_driver_sql(f"ALTER TABLE versions DROP COLUMN {column}")
        connection.exec_driver_sql("ALTER TABLE events DROP COLUMN servers")
        connection.exec_driver_sql("UPDATE registry_revision SET version_num = '0002'")
    again = Registry(either.home, url)
    assert again.served().aligner.files is None
    assert (again.verify(second.aligner).good, again.verify(again.served().aligner).recorded) == (True, False)
    assert again.rollback().number == first.number
    again.database.close()


def test_a_home_says_which_server_its_registry_is_on(tmp_path, postgres, monkeypatch):
    monkeypatch.setenv("ALIGNER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ALIGNER_REGISTRY", postgres.new_database())
    registry = Registry()
    pair = promote(registry)
    with pytest.raises(RegistryError, match=r"is kept in postgresql://owner:\*\*\*@") as caught:
        Registry(tmp_path / "home")
    assert "a%20secret" not in str(caught.value)
    assert not (tmp_path / "home" / "registry.db").exists()
    assert Registry(tmp_path / "demo").served() is None  # another home has a database of its own
    again = Registry()
    assert again.served() == pair
    for one in (registry, again):
        one.database.close()


def said(capsys: pytest.CaptureFixture[str], registry: Registry, *arguments: str, code: int = 0) -> Any:
    assert main([*arguments, "--home", str(registry.home), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_the_commands_of_upkeep(tmp_path, capsys):
    registry = Registry(tmp_path / "home")
    for _ in range(3):
        promote(registry)
    registry.promote(register(registry), expected=registry.pair(3))
    register(registry)
    assert said(capsys, registry, "promote", "challenger", "--expected", "4")["served"] == 5
    listed = said(capsys, registry, "registry", "list")
    assert listed["aliases"] == {"champion": 5, "previous": 4}
    assert (len(listed["versions"]), len(listed["pairs"]), listed["versions"][0]["bytes"]) == (10, 5, 7)
    (registry.home / "served.json").write_text("{}")
    assert said(capsys, registry, "registry", "sync") == {"found": "edited", "written": True, "pair": 5}
    collect = ("registry", "gc", "--keep", "2", "--grace", "0")
    assert len(said(capsys, registry, *collect, "--dry-run")["removed"]) == 6
    assert len(said(capsys, registry, *collect)["removed"]) == 6
    assert said(capsys, registry, *collect)["removed"] == []
    (registry.home / "aligner" / "5" / "model.safetensors").write_text("changed")
    faults = said(capsys, registry, "registry", "verify", code=3)["faults"]
    assert faults == {"aligner@5": {"missing": [], "changed": ["model.safetensors"], "added": []}}
    for plain in (["registry", "list"], ["registry", "verify"], collect, ["registry", "sync"], ["rollback"]):
        main([*plain, "--home", str(registry.home)])
    out = capsys.readouterr().out
    assert "Weights removed: upstream@1, upstream@2, upstream@3, aligner@1" in out
    assert "aligner@5: changed model.safetensors" in out
    assert "served.json serves pair 5, as the database says." in out
    assert main(["promote", "1", "--home", str(registry.home)]) == 1
    assert "aligner-bootstrap registry list" in capsys.readouterr().err
