"""Uids of machines: no two engines hold the same one."""

from __future__ import annotations

import subprocess
import sys

from emberbox.host.uids import UidLocks

UID = 1_999_999_900
"""That no machine of any test draws."""


def test_a_uid_is_one_holder_s_until_it_lets_go() -> None:
    first, second = UidLocks(), UidLocks()
    assert first.take(UID)
    assert not first.take(UID)
    assert not second.take(UID)
    assert second.take(UID + 1)
    first.let_go(UID)
    first.let_go(UID)
    assert second.take(UID)
    second.close()
    assert first.take(UID)
    first.close()


def test_another_process_finds_it_taken_and_the_kernel_lets_go_for_one_that_dies() -> None:
    code = f"from emberbox.host.uids import UidLocks; locks = UidLocks(); print(locks.take({UID + 2}))"
    locks = UidLocks()
    for held, answer in ((False, "True\n"), (True, "False\n")):
        assert not held or locks.take(UID + 2)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == answer
    locks.close()
