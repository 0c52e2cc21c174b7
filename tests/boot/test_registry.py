from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from aligner_chain.serving import read_served
from bootstrap.errors import RegistryError, StoreError
from bootstrap.registry import PairVersion, Registry


def weights(text: str = "weights"):
    """Writes a model of one file, in a folder of its own."""

    def write(folder: Path) -> None:
        (folder / "deeper").mkdir()
        (folder / "deeper" / "model.safetensors").write_text(text)

    return write


def files(home: Path) -> list[str]:
    """What is in a registry's folder, but for the database and its log."""
    paths = (path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file())
    return sorted(path for path in paths if not path.startswith("registry.db"))


def promoted(registry: Registry, upstream: bool = True, **arguments) -> PairVersion:
    version = registry.add("upstream", weights(), {}) if upstream else None
    return registry.promote(version, registry.add("aligner", weights(), {}), **{"figures": {}, **arguments})


@pytest.fixture
def registry(tmp_path) -> Registry:
    return Registry(tmp_path / "home")


def test_versions_are_numbered_by_kind_and_keep_their_manifest(registry):
    before = datetime.now(UTC)
    first, second = (registry.add("aligner", weights(text), {"data": text, "rows": (1, 2)}) for text in ("a", "b"))
    other = registry.add("upstream", weights(), {})
    assert registry.versions("aligner") == [first, second]
    assert registry.versions("upstream") == [other]
    assert [version.identity for version in (first, second, other)] == ["aligner@1", "aligner@2", "upstream@1"]
    assert second.manifest == {"data": "b", "rows": [1, 2]}
    assert before <= first.created <= second.created <= datetime.now(UTC)
    assert second.path == registry.home / "aligner" / "2"
    assert (second.path / "deeper" / "model.safetensors").read_text() == "b"
    assert files(registry.home) == [
        f"{kind}/deeper/model.safetensors" for kind in ("aligner/1", "aligner/2", "upstream/1")
    ]


def test_nothing_is_served_at_first(registry):
    assert registry.served() is None
    assert registry.history() == []
    assert read_served(registry.home) is None


@pytest.mark.parametrize("upstream", [True, False])
def test_a_promoted_pair_is_served(registry, upstream):
    pair = promoted(registry, upstream, figures={"fully_right": 0.93})
    assert registry.served() == Registry(registry.home).served() == pair
    served = read_served(registry.home)
    assert (served.pair, served.aligner.identity, served.aligner.path) == ("1", "aligner@1", pair.aligner.path)
    assert pair.figures == {"fully_right": 0.93}
    if upstream:
        assert (served.upstream.identity, served.upstream.path) == ("upstream@1", pair.upstream.path)
    else:
        assert served.upstream is pair.upstream is None


def test_a_home_can_be_moved(registry, tmp_path):
    promoted(registry)
    moved = registry.home.rename(tmp_path / "moved")
    assert read_served(moved).aligner.path.is_dir()
    assert Registry(moved).served().aligner.path == moved / "aligner" / "1"


def test_the_default_home_is_the_environments(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNER_HOME", str(tmp_path / "mine"))
    promoted(Registry())
    assert read_served().aligner.path == tmp_path / "mine" / "aligner" / "1"


def test_rollback_walks_back_pair_by_pair(registry):
    first, second, third = (promoted(registry, figures={"n": n}) for n in range(3))
    assert registry.rollback() == second
    assert read_served(registry.home).pair == "2"
    fourth = promoted(registry)
    assert [registry.rollback(), registry.rollback(), registry.served()] == [second, first, first]
    with pytest.raises(RegistryError, match="pair 1 is served and none was before"):
        registry.rollback()
    assert registry.served() == first
    actions = [(event.action, event.pair.number) for event in registry.history()]
    assert actions == [
        *(("promote", pair.number) for pair in (first, second, third)),
        ("rollback", 2),
        ("promote", fourth.number),
        ("rollback", 2),
        ("rollback", 1),
    ]


def test_history_has_times_and_figures(registry):
    promoted(registry, figures={"right": 0.5})
    (event,) = registry.history()
    assert event.pair.figures == {"right": 0.5}
    assert datetime.now(UTC) >= event.time >= event.pair.aligner.created


def test_there_is_no_way_back_from_nothing(registry):
    with pytest.raises(RegistryError, match="no pair is served") as caught:
        registry.rollback()
    assert "aligner-bootstrap registry list" in str(caught.value)


def test_a_promotion_holds_only_if_the_expected_pair_is_served(registry):
    first = promoted(registry, expected=None)
    second = promoted(registry, expected=first)
    for stale in (first, None):
        with pytest.raises(RegistryError, match=r"pair 2 is served and (pair 1|none) was expected"):
            promoted(registry, expected=stale)
    assert registry.served() == second
    assert len(registry.history()) == 2


def test_only_versions_of_this_registry_and_kind_are_promoted(registry, tmp_path):
    upstream, aligner = registry.add("upstream", weights(), {}), registry.add("aligner", weights(), {})
    foreign = Registry(tmp_path / "other").add("aligner", weights(), {})
    for pair in [(aligner, aligner), (None, upstream), (upstream, foreign)]:
        with pytest.raises(RegistryError, match="of the registry"):
            registry.promote(*pair, figures={})
    assert registry.served() is None


def test_weights_that_are_gone_are_not_served(registry):
    first, second = promoted(registry), promoted(registry)
    shutil.rmtree(first.aligner.path)
    with pytest.raises(RegistryError, match="aligner@1 are gone"):
        registry.rollback()
    assert registry.served() == second
    assert read_served(registry.home).pair == "2"


@pytest.mark.parametrize("error", [KeyError("a bug"), KeyboardInterrupt()])
def test_what_a_writer_raises_is_passed_on_and_nothing_is_left(registry, error):
    def fail(folder: Path) -> None:
        weights()(folder)
        raise error

    with pytest.raises(type(error)):
        registry.add("aligner", fail, {})
    assert files(registry.home) == []
    assert registry.versions("aligner") == []
    assert registry.add("aligner", weights(), {}).number == 1


FULL = ("MiB are free now", "export ALIGNER_HOME=/path/with/space")


@pytest.mark.parametrize(
    ("error", "ways"),
    [
        (OSError(28, "No space left on device"), FULL),
        (PermissionError(13, "Permission denied"), ("who may write it", "ls -la")),
        (IsADirectoryError(21, "Is a directory"), ("who may write it", "ls -la")),
        (Exception("No space left on device (os error 28)"), FULL),  # what the tokenizers library raises
    ],
    ids=["full", "denied", "folder", "full for Rust"],
)
def test_a_disks_error_says_the_way_out(registry, error, ways):
    def fail(folder: Path) -> None:
        weights()(folder)
        raise error

    with pytest.raises(RegistryError, match="The aligner could not be saved in") as caught:
        registry.add("aligner", fail, {})
    for part in (str(registry.home), str(error), "half written is removed", *ways):
        assert part in str(caught.value)
    assert ("Free disk space" in str(caught.value)) == (ways == FULL)
    assert caught.value.__cause__ is error
    assert files(registry.home) == []


def test_what_cannot_be_recorded_is_refused_before_anything_is_written(registry):
    with pytest.raises(TypeError):
        registry.add("aligner", lambda folder: pytest.fail("was written"), {"data": object()})
    with pytest.raises(TypeError):
        promoted(registry, figures={"gate": object()})
    assert registry.served() is None


def test_an_unknown_kind_is_refused(registry):
    with pytest.raises(ValueError, match="upstream, aligner"):
        registry.add("judge", weights(), {})
    with pytest.raises(ValueError, match="upstream, aligner"):
        registry.versions("judge")


SAVE = """
import os, resource, sys
import numpy
from pathlib import Path
from safetensors.numpy import save_file
from bootstrap.errors import RegistryError, StoreError
from bootstrap.registry import Registry

home, limit = Path(sys.argv[1]), int(sys.argv[2])
registry = Registry(home)

def saver(size):
    return lambda folder: save_file({"weight": numpy.zeros(size, numpy.uint8)}, folder / "model.safetensors")

def fill(folder):
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            os.fsync(file.fileno())

pair = registry.promote(registry.add("upstream", saver(1000), {}), registry.add("aligner", saver(1000), {}), figures={})
before = (home / "served.json").read_bytes()
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
for write in [saver(8 * 2**20)] + [fill] * (not limit):
    try:
        registry.add("aligner", write, {})
    except (RegistryError, StoreError) as error:
        print(error)
    else:
        sys.exit("the disk was not full")
    assert registry.served() == Registry(home).served() == pair
    assert (home / "served.json").read_bytes() == before
    assert (pair.aligner.path / "model.safetensors").stat().st_size > 1000
    assert [path.name for path in (home / "aligner").iterdir()] == ["1"]
assert registry.add("aligner", saver(1000), {}).number == 2
"""
MOUNT = 'mount -t tmpfs -o size=4m none "$0" && exec "$@"'


def can_mount() -> bool:
    try:
        mount = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/tmp"]
        return subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not can_mount(), reason="a small disk needs user namespaces")
def test_the_old_pair_is_served_when_the_disk_is_full(tmp_path, run_python):
    disk = tmp_path / "disk"
    disk.mkdir()
    done = run_python(SAVE, disk / "home", 0, prefix=("unshare", "-rm", "sh", "-c", MOUNT, str(disk)))
    assert done.returncode == 0, done.stderr
    assert "No space left on device" in done.stdout
    assert "Free disk space, or keep the registry on another disk:  export ALIGNER_HOME=" in done.stdout


def test_the_old_pair_is_served_when_a_file_may_not_grow(tmp_path, run_python):
    done = run_python(SAVE, tmp_path / "home", 2**20)
    assert done.returncode == 0, done.stderr
    assert "The aligner could not be saved" in done.stdout
    assert "File too large" in done.stdout


KILLED = """
import os, signal, sys
from bootstrap.registry import Registry

def write(folder):
    (folder / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

Registry(sys.argv[1]).add("aligner", write, {})
"""


def test_what_a_killed_process_leaves_is_removed_after_an_hour(registry, run_python):
    pair = promoted(registry)
    assert run_python(KILLED, registry.home).returncode == -signal.SIGKILL
    (left,) = (registry.home / "aligner").glob(".new-*")
    assert Registry(registry.home).served() == pair
    assert registry.add("aligner", weights(), {}).number == 2
    assert (left / "half").is_file()  # it might be another process at work
    old = time.time() - 3700
    os.utime(left, (old, old))
    registry.add("aligner", weights(), {})
    assert (left / "half").is_file()  # its file is young
    os.utime(left / "half", (old, old))
    registry.add("aligner", weights(), {})
    assert not left.exists()


KILLED_BEFORE_PUBLISHING = """
import os, signal, sys
from bootstrap.registry import Registry
registry = Registry(sys.argv[1])
os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
registry.promote(None, registry.versions("aligner")[-1], figures={})
"""


def test_a_promotion_that_was_killed_before_it_was_published_is_published(registry, run_python):
    promoted(registry)
    registry.add("aligner", weights(), {})
    assert run_python(KILLED_BEFORE_PUBLISHING, registry.home).returncode == -signal.SIGKILL
    assert read_served(registry.home).pair == "1"  # nothing changed for those who are served
    assert Registry(registry.home).served().number == 2
    assert read_served(registry.home).pair == "2"


@pytest.mark.parametrize("damage", [b"", b'{"schema": 1', b"\xff\xfe"])
def test_a_damaged_served_json_is_written_anew(registry, damage):
    promoted(registry)
    whole = (registry.home / "served.json").read_bytes()
    (registry.home / "served.json").write_bytes(damage)
    Registry(registry.home)
    assert (registry.home / "served.json").read_bytes() == whole


def failing_at(call: int):
    """An `os.fsync` by which a disk says at this call, from 1, that it is full."""
    calls = itertools.count(1)

    def fsync(descriptor: int) -> None:
        if next(calls) == call:
            raise OSError(28, "No space left on device")

    return fsync


def test_a_promotion_that_cannot_be_published_is_none(registry, monkeypatch):
    pair, aligner = promoted(registry), registry.add("aligner", weights(), {})
    monkeypatch.setattr(os, "fsync", failing_at(1))
    with pytest.raises(RegistryError, match="could not be published"):
        registry.promote(None, aligner, figures={})
    assert registry.served() == pair
    assert read_served(registry.home).pair == "1"
    assert not list(registry.home.glob(".new-*"))


@pytest.mark.parametrize("call", [1, 2, 3, 4])  # the file, its folder, the version, the folder of all versions
def test_a_version_that_cannot_be_made_to_last_is_none(registry, monkeypatch, call):
    monkeypatch.setattr(os, "fsync", failing_at(call))
    with pytest.raises(RegistryError, match="could not be saved"):
        registry.add("aligner", weights(), {})
    assert files(registry.home) == []
    assert registry.versions("aligner") == []
    assert registry.add("aligner", weights(), {}).number == 1


def test_weights_outlive_a_lost_database(registry):
    promoted(registry)
    for file in registry.home.glob("registry.db*"):
        file.unlink()
    fresh = Registry(registry.home)
    assert fresh.served() is None
    assert read_served(registry.home).pair == "1"  # what is served is still served
    assert fresh.add("aligner", weights("new"), {}).number == 2
    assert (registry.home / "aligner" / "1" / "deeper" / "model.safetensors").read_text() == "weights"


def test_a_corrupt_database_is_named(registry):
    promoted(registry)
    (registry.home / "registry.db").write_bytes(b"\x07 not a database at all" * 300)
    with pytest.raises(StoreError, match="SQLITE_NOTADB"):
        Registry(registry.home)
    assert read_served(registry.home).pair == "1"


RACE = """
import multiprocessing, sys
from bootstrap.registry import Registry

def work(barrier, home, name):
    registry = Registry(home)
    barrier.wait()
    for number in range(4):
        version = registry.add("aligner", lambda folder: (folder / "name").write_text(f"{name} {number}"), {"by": [name, number]})
        registry.promote(None, version, figures={})

if __name__ == "__main__":
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(3)
    processes = [fork.Process(target=work, args=(barrier, sys.argv[1], name)) for name in range(3)]
    [process.start() for process in processes]
    [process.join() for process in processes]
    sys.exit(max(process.exitcode for process in processes))
"""


def test_processes_that_add_and_promote_at_once_get_numbers_of_their_own(registry, run_python):
    done = run_python(RACE, registry.home)
    assert done.returncode == 0, done.stderr
    versions = registry.versions("aligner")
    assert [version.number for version in versions] == list(range(1, 13))
    written = [tuple(map(int, (version.path / "name").read_text().split())) for version in versions]
    assert written == [tuple(version.manifest["by"]) for version in versions]
    assert sorted(written) == list(itertools.product(range(3), range(4)))
    assert read_served(registry.home).pair == str(registry.served().number) == "12"
    assert len(files(registry.home)) == 12 + 1


def test_served_json_is_what_serving_reads(registry):
    promoted(registry)
    assert json.loads((registry.home / "served.json").read_text()) == {
        "schema": 1,
        "pair": "1",
        "upstream": {"identity": "upstream@1", "path": "upstream/1"},
        "aligner": {"identity": "aligner@1", "path": "aligner/1"},
    }
