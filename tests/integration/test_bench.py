"""`emberbox bench` as a user runs it: real sandboxes, few samples. What it measures is not judged here."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from commandline import PROGRAM, ROOT, emberbox, process
from emberbox import Settings

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("nothing_left")]


def nothing_of_the_bench_is_left(settings: Settings) -> None:
    """`nothing_left` looks at the run directory; the others are the cache and the user's own history."""
    assert list((settings.cache_dir / "bench").iterdir()) == []
    assert not settings.state_dir.exists() or list(settings.state_dir.iterdir()) == []


def test_json_is_one_document_with_ours_beside_the_alternatives(settings: Settings) -> None:
    done = process("bench", "--quick", "--only", "on-demand", "--only", "overhead,live", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["quick"]
    assert document["machine"]["cores"] >= 1
    assert {"emberbox", "python", "runsc"} <= set(document["versions"])
    rows = {row["key"]: row for row in document["rows"]}
    assert list(rows) == ["on-demand", "live", "overhead"]
    counts = document["settings"]["counts"]
    assert rows["on-demand"]["emberbox"]["n"] == counts["fresh sandboxes"]
    assert rows["live"]["emberbox"]["n"] == counts["executions"]
    for row in rows.values():
        ours = row["emberbox"]
        assert 0 < ours["min"] <= ours["p25"] <= ours["median"] <= ours["p75"] <= ours["max"]
        assert row["met"] is (ours["median"] <= row["aim"]["most"])
    beside = {other["name"]: other for other in rows["on-demand"]["alternatives"]}
    assert list(beside) == ["python3 on the host", "bubblewrap", "runsc run, cold", "Jupyter kernel"]
    for name in ("python3 on the host", "runsc run, cold", "Jupyter kernel"):
        assert beside[name]["n"] >= 2
        assert beside[name]["median"] > 0
    bwrap = beside["bubblewrap"]
    assert bwrap.get("n") or bwrap["remedy"] == "apt-get install bubblewrap" or bwrap["missing"]
    assert [part for part in ("fresh sandboxes", "small executions", "engine overhead") if part in done.stderr] != []
    nothing_of_the_bench_is_left(settings)


def drawn(*arguments: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(ROOT / "benchmarks/bench_plot.py"), *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_the_table_the_picture_and_the_file_are_of_one_run(settings: Settings, tmp_path: Path) -> None:
    picture, file = tmp_path / "bench.png", tmp_path / "bench.json"
    done = process("bench", "--quick", "--only", "fork,memory", "--output", str(file), COLUMNS="100")
    assert done.returncode == 0, done.stderr
    assert all(words in done.stdout for words in ("fork of a small session", "runsc restore", "≤ 80 ms", "aims met"))
    assert max(len(line) for line in done.stdout.splitlines()) <= 100
    document = json.loads(file.read_text())
    assert [row["key"] for row in document["rows"]] == ["fork", "memory"]
    assert drawn(file, picture).returncode == 0
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    assert (width, 300 < height < 3000) == (1500, True)
    nothing_of_the_bench_is_left(settings)


def test_a_picture_of_no_document_is_refused(tmp_path: Path) -> None:
    for file in (tmp_path / "nowhere.json", Path(__file__)):
        refused = drawn(file, tmp_path / "bench.png")
        assert refused.returncode == 1
        assert "`emberbox bench --output FILE` makes one." in refused.stderr
    assert drawn().stderr == "usage: python benchmarks/bench_plot.py FILE.json PICTURE.png\n"


def test_ctrl_c_leaves_nothing(settings: Settings) -> None:
    process = subprocess.Popen(
        [*PROGRAM, "bench", "--quick", "--only", "on-demand,live"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=dict(os.environ),
    )
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if "small executions" in line:  # a kernel and an engine are about to start
                process.send_signal(signal.SIGINT)
                break
        _, words = process.communicate(timeout=60)
    assert process.returncode == 130, words
    assert "interrupted" in words
    nothing_of_the_bench_is_left(settings)


def test_no_back_end_is_exit_code_5() -> None:
    done = emberbox("bench", "--quick", "--only", "live", "--json", EMBERBOX_RUNSC="/nowhere/runsc")
    assert done.returncode == 5
    assert json.loads(done.stdout)["error"]["code"] == "vm_not_available"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nonsense"], "no row 'nonsense'"),
        (["--output", "/nowhere/bench.json"], "no folder for /nowhere/bench.json"),
        (["--template", "nope"], "no template 'nope'"),
    ],
)
def test_bad_usage_is_exit_code_2_before_anything_is_measured(arguments: list[str], message: str) -> None:
    done = emberbox("bench", "--quick", *arguments)
    assert done.returncode == 2, done.stdout
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
