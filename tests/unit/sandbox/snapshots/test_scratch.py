"""Where snapshots are that end with their process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from emberbox.sandbox.snapshots.scratch import SnapshotScratch


def test_it_is_made_when_it_is_asked_for_once_and_goes(tmp_path: Path) -> None:
    scratch = SnapshotScratch(tmp_path / "base")
    scratch.release()
    assert not (tmp_path / "base").exists()
    path = scratch.path()
    assert scratch.path() == path
    assert (path.parent, path.stat().st_mode & 0o777) == (tmp_path / "base", 0o700)
    scratch.release()
    assert not path.exists()
    assert scratch.path() != path
    scratch.release()


def test_what_a_dead_process_left_is_swept_and_that_of_a_live_one_stays(tmp_path: Path) -> None:
    mine = SnapshotScratch(tmp_path)
    (mine.path() / "snap-1").mkdir()
    code = (
        "import os, sys; from pathlib import Path; from emberbox.sandbox.snapshots.scratch import SnapshotScratch; "
        "(SnapshotScratch(Path(sys.argv[1])).path() / 'snap-2').mkdir(); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -9
    assert len(list(tmp_path.iterdir())) == 2
    SnapshotScratch(tmp_path).sweep()
    assert list(tmp_path.iterdir()) == [mine.path()]
    assert (mine.path() / "snap-1").exists()
    mine.release()
