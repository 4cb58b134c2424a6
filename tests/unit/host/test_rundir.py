"""Run directories: locked while their owner lives, cleared when it is dead."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from emberbox.errors import ConfigError
from emberbox.host.cgroups import CgroupRoot
from emberbox.host.rundir import CGROUPS, RunDir, clear_owner, dead_owners, make_run_dir, processes_of


@pytest.fixture
def place(run_dir: Path) -> Iterator[RunDir]:
    made = make_run_dir(run_dir)
    yield made
    made.release()


def dead(base: Path) -> list[Path]:
    """The directories of dead owners, with their locks let go again."""
    found = []
    for path, fd in dead_owners(base):
        found.append(path)
        os.close(fd)
    return found


@pytest.fixture
def abandoned(run_dir: Path) -> Path:
    """The directory of an owner that died without a word."""
    made = make_run_dir(run_dir)
    os.close(made.lock_fd)
    return made.path


# --- making -----------------------------------------------------------------------------------------------------------


def test_directories_are_private_and_each_is_another(run_dir: Path, place: RunDir) -> None:
    other = make_run_dir(run_dir)
    assert place.path.parent == other.path.parent == run_dir
    assert place.owner == place.path.name
    assert place.owner != other.owner
    assert stat.S_IMODE(place.path.stat().st_mode) == 0o700
    other.release()
    assert list(run_dir.iterdir()) == [place.path]


def test_the_base_is_made_private(run_dir: Path) -> None:
    made = make_run_dir(run_dir / "a" / "b")
    assert stat.S_IMODE((run_dir / "a" / "b").stat().st_mode) == 0o700
    made.release()


def test_release_removes_the_directory_with_all_that_is_in_it(run_dir: Path) -> None:
    made = make_run_dir(run_dir)
    (made.path / "machine" / "s").mkdir(parents=True)
    (made.path / "machine" / "s" / "file").touch()
    made.release()
    assert list(run_dir.iterdir()) == []


def test_a_base_that_others_can_write_to_is_refused(run_dir: Path) -> None:
    run_dir.chmod(0o777)
    with pytest.raises(ConfigError, match="not a private directory") as info:
        make_run_dir(run_dir)
    assert "EMBERBOX_RUN_DIR" in info.value.remediation
    assert list(run_dir.iterdir()) == []


@pytest.mark.skipif(os.getuid() == 0, reason="root owns everything that is here")
def test_a_base_of_another_user_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a private directory"):
        make_run_dir(Path("/usr"))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_a_base_of_another_user_is_refused_to_root(run_dir: Path) -> None:
    base = run_dir / "theirs"
    base.mkdir(mode=0o700)
    os.chown(base, 12345, 12345)
    with pytest.raises(ConfigError, match="not a private directory"):
        make_run_dir(base)


def test_a_symbolic_link_for_a_base_is_refused(run_dir: Path) -> None:
    (run_dir / "real").mkdir(mode=0o700)
    (run_dir / "link").symlink_to("real")
    with pytest.raises(ConfigError, match="not a private directory"):
        make_run_dir(run_dir / "link")
    assert list((run_dir / "real").iterdir()) == []


def test_a_file_in_place_of_the_base(run_dir: Path) -> None:
    (run_dir / "file").touch()
    with pytest.raises(ConfigError, match="Cannot make the run directory"):
        make_run_dir(run_dir / "file")


def test_a_base_too_long_for_sockets_is_refused_unless_none_live_there(run_dir: Path) -> None:
    base = run_dir / ("x" * 60)
    with pytest.raises(ConfigError, match="too long for Unix sockets"):
        make_run_dir(base)
    make_run_dir(base, socket_paths=False).release()


# --- locks ------------------------------------------------------------------------------------------------------------


def test_a_living_owner_is_not_found(run_dir: Path, place: RunDir) -> None:
    assert dead(run_dir) == []


def test_a_dead_owner_is_found(run_dir: Path, place: RunDir, abandoned: Path) -> None:
    assert dead(run_dir) == [abandoned]


def test_two_who_clear_up_do_not_get_the_same_directory(run_dir: Path, abandoned: Path) -> None:
    first = list(dead_owners(run_dir))
    assert dead(run_dir) == []
    for _, fd in first:
        os.close(fd)
    assert dead(run_dir) == [abandoned]


def test_whoever_shares_the_lock_keeps_the_directory(run_dir: Path) -> None:
    """The spawner outlives Emberbox by the time it needs to clean up."""
    made = make_run_dir(run_dir)
    heir = os.dup(made.lock_fd)
    os.close(made.lock_fd)
    assert dead(run_dir) == []
    os.close(heir)
    assert dead(run_dir) == [made.path]


def test_a_base_that_is_not_there_has_no_dead_owners(tmp_path: Path) -> None:
    assert dead(tmp_path / "none") == []


def test_strange_things_in_the_base_are_left_alone(run_dir: Path, tmp_path: Path) -> None:
    (run_dir / "file").touch()
    (run_dir / "directory").mkdir()
    target = tmp_path / "lock"
    target.touch()
    (run_dir / "trap").mkdir()
    (run_dir / "trap" / "lock").symlink_to(target)
    assert dead(run_dir) == []
    assert len(list(run_dir.iterdir())) == 3


def test_what_a_start_cut_short_left_is_removed_only_when_it_is_old(run_dir: Path) -> None:
    for name, age in ((".old", 3600), (".new", 0)):
        (run_dir / name).mkdir()
        os.utime(run_dir / name, (time.time() - age,) * 2)
    assert dead(run_dir) == []
    assert [path.name for path in run_dir.iterdir()] == [".new"]


# --- clearing ---------------------------------------------------------------------------------------------------------


def sleeper(*mentioned: str) -> subprocess.Popen[bytes]:
    """A program whose command line names these; it has begun when this returns."""
    code = "print(flush=True); import time; time.sleep(1000)"
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", code, *mentioned], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    return process


def end(process: subprocess.Popen[bytes]) -> int:
    process.kill()
    return process.wait()


def test_processes_are_found_by_their_command_line(run_dir: Path) -> None:
    process = sleeper(f"--root={run_dir}/s")
    try:
        assert processes_of(f"{run_dir}/") == [process.pid]
    finally:
        end(process)
    assert processes_of(f"{run_dir}/") == []


def test_clearing_kills_what_is_left_and_removes_the_files(run_dir: Path, abandoned: Path) -> None:
    (abandoned / "machine").mkdir()
    (abandoned / "machine" / "config.json").touch()
    left, stranger = sleeper(f"--bundle={abandoned}/machine"), sleeper(str(run_dir))
    try:
        assert clear_owner(abandoned) == 1
        assert left.wait(timeout=30) == -9
        assert stranger.poll() is None
    finally:
        end(left)
        end(stranger)
    assert list(run_dir.iterdir()) == []


def test_clearing_spares_an_owner_whose_name_begins_alike(run_dir: Path, abandoned: Path) -> None:
    neighbour = sleeper(f"{abandoned}x/machine")
    try:
        assert clear_owner(abandoned) == 0
        assert neighbour.poll() is None
    finally:
        end(neighbour)


def test_clearing_removes_the_groups_that_the_owner_wrote_down(abandoned: Path, tmp_path: Path) -> None:
    """Plain directories stand for cgroups; the members of the second are in its file as they would be."""
    groups = tmp_path / "emberbox"
    for name in (f"{abandoned.name}-gv1", "stranger-gv1"):
        (groups / name).mkdir(parents=True)
    CgroupRoot("v2", {"memory": groups}).save(abandoned / CGROUPS)
    clear_owner(abandoned)
    assert [path.name for path in groups.iterdir()] == ["stranger-gv1"]


def test_clearing_kills_the_members_of_the_groups(abandoned: Path, tmp_path: Path) -> None:
    group = tmp_path / "emberbox" / f"{abandoned.name}-gv1"
    group.mkdir(parents=True)
    member = sleeper()
    (group / "cgroup.procs").write_text(f"{member.pid}\n")
    CgroupRoot("v2", {"memory": group.parent}).save(abandoned / CGROUPS)
    try:
        assert clear_owner(abandoned) == 1
        assert member.wait(timeout=30) == -9
    finally:
        end(member)


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "{}", '{"version": "v1", "directories": 5}'])
def test_clearing_works_without_a_readable_note_on_cgroups(abandoned: Path, text: str) -> None:
    (abandoned / CGROUPS).write_text(text)
    assert clear_owner(abandoned) == 0
    assert not abandoned.exists()


def test_the_lock_is_that_of_the_file_lock(place: RunDir) -> None:
    fd = os.open(place.path / "lock", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    os.close(fd)
