"""Uids of machines: no two engines hold the same one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from emberbox.host.uids import UidLocks


def test_a_uid_is_one_holder_s_until_it_lets_go(tmp_path: Path) -> None:
    first, second = UidLocks(tmp_path), UidLocks(tmp_path)
    assert first.take(5)
    assert not first.take(5)
    assert not second.take(5)
    assert second.take(6)
    first.let_go(5)
    assert second.take(5)
    second.close()
    assert first.take(5)
    first.close()
    assert list(tmp_path.iterdir()) == []


def test_the_kernel_lets_go_for_a_holder_that_dies(tmp_path: Path) -> None:
    code = "import sys, pathlib, emberbox.host.uids as u; print(u.UidLocks(pathlib.Path(sys.argv[1])).take(5))"
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    locks = UidLocks(tmp_path)
    assert locks.take(5)
    locks.close()


def test_a_file_that_was_removed_meanwhile_is_no_lock(tmp_path: Path) -> None:
    first, second, third = (UidLocks(tmp_path) for _ in range(3))
    assert first.take(5)
    (tmp_path / "5").unlink()
    assert second.take(5), "the name is free"
    first.close()
    assert not third.take(5), "the first has not removed the file of the second"
    second.close()


def test_without_a_folder_nothing_is_locked_and_nothing_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    locks = UidLocks(tmp_path / "file/below")
    assert locks.take(5)
    locks.let_go(5)
    locks.close()
