"""New seeds for the generators of a Python process, when it is told that its machine is a copy."""

from __future__ import annotations

import subprocess
import sys

import pytest

from emberbox.guest.kernels import freshness

TOLD = f"""
import runpy, signal
names = runpy.run_path({freshness.__file__!r})
names["listen"]()
def copied():
    signal.raise_signal(names["SIGNAL"])
"""


def run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", TOLD + code], capture_output=True, text=True, check=True)
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize(
    ("prepare", "state"),
    [
        ("import random; random.seed(7)", "random.getstate()"),
        ("import tempfile; tempfile._get_candidate_names().mark = 1", "vars(tempfile._get_candidate_names())"),
        ("import uuid; uuid._generate_time_safe = lambda: (b'0' * 16, 0)", "uuid.uuid1()"),
        ("import numpy; numpy.random.seed(7)", "list(numpy.random.get_state()[1])"),
    ],
)
def test_what_keeps_a_state_gets_another_one(prepare: str, state: str) -> None:
    before, after = run(f"{prepare}\nprint(repr({state}))\ncopied()\nprint(repr({state}))")
    assert before != after


def test_what_a_program_has_seeded_itself_goes_on() -> None:
    (same,) = run("import random\nown = random.Random(7)\ncopied()\nprint(own.random() == random.Random(7).random())")
    assert same == "True"


def test_modules_that_are_not_loaded_stay_so() -> None:
    (loaded,) = run("import sys\ncopied()\nprint([n for n in ('uuid', 'tempfile', 'numpy') if n in sys.modules])")
    assert loaded == "[]"


def test_a_module_of_the_users_by_that_name_does_no_harm() -> None:
    code = "import sys, types\nsys.modules['random'] = types.ModuleType('random')\ncopied()\nprint('on')"
    assert run(code) == ["on"]
