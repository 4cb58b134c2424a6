"""The launcher of a checkout, with a stand-in for Python that notes how it is called."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest

EMBER = Path(__file__).parents[2] / "ember"
PYTHON = """#!/bin/sh
case "$*" in
    "-VV") echo stand-in ;;
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    *sysconfig*) dirname "$0" ;;
    "-P -m emberbox.cli.entry "*)
        shift 3
        echo "$$ $*" >>"$CALLS"
        [ "$1" != serve ] || { read -r line <"$BARRIER"; exit 3; }
        [ "$1" != exec ] || [ -t 0 ] || cat
        ;;
esac
"""


class Checkout:
    """A home without anything, in which `./ember` finds the stand-in."""

    def __init__(self, folder: Path) -> None:
        (folder / "bin").mkdir()
        python = folder / "bin" / "python3"
        python.write_text(PYTHON)
        python.chmod(0o755)
        self._calls = folder / "calls"
        self.barrier = folder / "barrier"
        os.mkfifo(self.barrier)
        self.environment = {
            "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
            "HOME": str(folder),
            "EMBERBOX_CACHE_DIR": str(folder / "cache"),
            "CALLS": str(self._calls),
            "BARRIER": str(self.barrier),
        }

    def calls(self) -> list[str]:
        """What `emberbox` was called with, one call after the other."""
        return [line.partition(" ")[2] for line in self._calls.read_text().splitlines()]

    def pids(self) -> list[int]:
        return [int(line.split()[0]) for line in self._calls.read_text().splitlines()]

    def at_terminal(self, *words: str) -> None:
        """Run it as a person does, at a terminal."""
        ours, theirs = pty.openpty()
        try:
            done = subprocess.run(
                [str(EMBER), *words], env=self.environment, stdin=theirs, stdout=theirs, stderr=theirs, timeout=60,
                check=False,
            )  # fmt: skip
        finally:
            os.close(ours)
            os.close(theirs)
        assert done.returncode == 0


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize("words", [["run", "--yes", "FILE"], ["run", "FILE", "-y"], ["exec", "-y", "f.py", "a"]])
def test_a_yes_reaches_the_set_up_and_the_command(checkout: Checkout, words: list[str]) -> None:
    checkout.at_terminal(*words)
    assert checkout.calls() == ["setup --yes", " ".join(words)]


@pytest.mark.parametrize("words", [["run", "FILE"], ["exec", "f.py", "--", "--yes", "-y", "--help"]])
def test_without_it_the_set_up_asks_the_person_at_the_terminal(checkout: Checkout, words: list[str]) -> None:
    checkout.at_terminal(*words)
    assert checkout.calls() == ["setup", " ".join(words)]


@pytest.mark.parametrize("words", [["run", "--help"], ["exec", "-h", "--yes"], ["doctor"], ["setup", "--yes"]])
def test_what_runs_nothing_sets_nothing_up(checkout: Checkout, words: list[str]) -> None:
    checkout.at_terminal(*words)
    assert checkout.calls() == [" ".join(words)]


@pytest.mark.parametrize("command", ["serve", "config"])
def test_the_program_takes_the_place_of_the_launcher(checkout: Checkout, command: str) -> None:
    """Whoever started `./ember` has the program's own pid."""
    with subprocess.Popen([str(EMBER), command], env=checkout.environment) as process:
        if command == "serve":
            checkout.barrier.write_text("go\n")
        status = process.wait(60)
    assert status == (3 if command == "serve" else 0)
    assert checkout.pids() == [process.pid]


def test_a_signal_reaches_the_program(checkout: Checkout) -> None:
    process = subprocess.Popen([str(EMBER), "serve"], env=checkout.environment)
    with checkout.barrier.open("w"):  # it is there when it has opened the other end
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM
    assert checkout.pids() == [process.pid]


def test_standard_input_reaches_the_program(checkout: Checkout) -> None:
    done = subprocess.run(
        [str(EMBER), "exec", "f.py"],
        env=checkout.environment,
        input=b"Ann\n",
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == b"Ann\n"
