"""Rows about whole processes: the command line, and what its imports cost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial

from emberbox.bench.alternatives import DEADLINE, plain_env, tail
from emberbox.bench.lab import Lab, others, ours
from emberbox.bench.measure import Clock, Contender, in_thread, interleave
from emberbox.bench.results import BARE, VERSION, Row
from emberbox.errors import ExecutionFailed

_PROGRAM = (sys.executable, "-P", "-m", "emberbox.cli.entry")
_BARE = (sys.executable, "-P", "-c")
_TITLES = {
    "exec": "emberbox exec of one print, from the start of the process to its end",
    "import": "from emberbox import Sandbox, in a process of its own",
    "import-client": "import emberbox.client, in a process of its own",
}


async def commands(lab: Lab) -> list[Row]:
    """Rows `exec`, `import` and `import-client`: processes, from their start to their end."""
    template = () if lab.template is None else ("--template", lab.template)
    every: dict[str, Sequence[str]] = {
        "exec": (*_PROGRAM, "exec", "-l", "python", "-c", "print('hello')", *template),
        "import": (*_BARE, "from emberbox import Sandbox"),
        "import-client": (*_BARE, "import emberbox.client"),
        VERSION: (*_PROGRAM, "--version"),
        BARE: (*_BARE, "pass"),
    }
    folders = {"CACHE_DIR": lab.settings.cache_dir, "RUN_DIR": lab.run, "STATE_DIR": lab.work / "commands"}
    environment = plain_env() | {f"EMBERBOX_{name}": str(path) for name, path in folders.items()}
    contenders = [
        Contender(key, partial(in_thread, partial(_process, argv, environment)))
        for key, argv in every.items()
        if key not in _TITLES or lab.wants(key)
    ]
    samples = await interleave(contenders, lab.count("processes", 20, 5), tick=lab.tick)
    return [
        Row(
            key,
            title,
            "ms",
            ours(samples[key]),
            None,
            others([VERSION, BARE] if key == "exec" else [BARE], samples, {}),
        )
        for key, title in _TITLES.items()
        if key in samples
    ]


def _process(argv: Sequence[str], environment: Mapping[str, str]) -> float:
    """Milliseconds from the start of a program to its end; raises ExecutionFailed where it did not succeed."""
    clock = Clock()
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE, check=False, env=environment
    )
    taken = clock.ms()
    if done.returncode:
        raise ExecutionFailed(f"{' '.join(argv)} ended with status {done.returncode}: {tail(done.stderr)}")
    return taken
