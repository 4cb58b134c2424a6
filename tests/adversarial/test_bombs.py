"""Code that takes all there is of something ends alone and with the right reason: its sandbox goes on, as do others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from emberbox import AsyncSandbox, Engine, MachineLimits, Settings, TerminationReason, load_settings
from emberbox.errors import ExecutionFailed, GuestFileError
from emberbox.models import Language

MINIMAL = "minimal"
LIMITS = MachineLimits(memory_mb=320, processes=32, disk_mb=16, tmp_mb=16, output_bytes=4096)
DEADLINE = 60.0
COMPLETED, TIMEOUT, MEMORY = TerminationReason.COMPLETED, TerminationReason.TIMEOUT, TerminationReason.MEMORY
PROCESSES, DISK, CRASHED = TerminationReason.PROCESSES, TerminationReason.DISK, TerminationReason.CRASHED
CUT = TerminationReason.OUTPUT_TRUNCATED
MULTIPLIES = (TIMEOUT, PROCESSES, MEMORY)
"""What multiplies until its time is over, or one of the two limits that it runs into first."""


@dataclass(frozen=True)
class Bomb:
    """Code, and the reasons with which it may end."""

    code: str
    reasons: tuple[TerminationReason, ...]
    language: Language = "python"
    timeout: float = 1.5
    kills_all: bool = False
    """It kills the interpreters of other contexts on purpose."""

    @property
    def seconds(self) -> float:
        """What does not end by its time may take as long as a loaded host needs."""
        return self.timeout if TIMEOUT in self.reasons else DEADLINE / 2


BOMBS = {
    "forks": Bomb("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", MULTIPLIES),
    "forks that end at the limit": Bomb("import os\nwhile True: os.fork()", MULTIPLIES),
    "sleepers": Bomb("import os, time\nwhile True:\n    if not os.fork(): time.sleep(999)", MULTIPLIES, timeout=3),
    "sleepers that ignore every signal": Bomb(
        "import os, signal, time\n"
        "for n in {*signal.valid_signals()} - {9, 19, 32, 33}: signal.signal(n, signal.SIG_IGN)\n"
        "while True:\n"
        "    try:\n"
        "        if not os.fork():\n"
        "            while True: time.sleep(999)\n"
        "    except OSError: pass",
        MULTIPLIES,
    ),
    "forks with a session each": Bomb(
        "import os\nwhile True:\n    try:\n        if not os.fork(): os.setsid()\n    except OSError: pass", MULTIPLIES
    ),
    "a process that hops from session to session": Bomb(
        "import os, time\n"
        "if not os.fork():\n"
        "    while True:\n"
        "        try:\n"
        "            if os.fork(): os._exit(0)\n"
        "            os.setsid()\n"
        "        except OSError: pass\n"
        "time.sleep(99)",
        (TIMEOUT,),
    ),
    "daemons": Bomb(
        "import os, time\n"
        "while True:\n"
        "    try:\n"
        "        if not os.fork():\n"
        "            os.setsid()\n"
        "            if os.fork(): os._exit(0)\n"
        "            while True: time.sleep(99)\n"
        "        os.wait()\n"
        "    except OSError: time.sleep(0.01)",
        MULTIPLIES,
    ),
    "programs": Bomb(
        "import subprocess\nall = []\nwhile True: all.append(subprocess.Popen(['sleep', '999']))",
        MULTIPLIES,
        timeout=3,
    ),
    "threads": Bomb(
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(999,)).start()", (PROCESSES,)
    ),
    "eight spinning threads": Bomb(
        "import threading\ndef f():\n    while True: pass\nfor _ in range(8): threading.Thread(target=f).start()\nf()",
        (TIMEOUT,),
    ),
    "memory by touch": Bomb(
        "all = []\nwhile True: all.append(b'x' * (1 << 20) + bytes([len(all) % 250]))", (MEMORY,)
    ),
    "memory by mmap": Bomb(
        "import mmap\nall = []\n"
        "while True:\n    m = mmap.mmap(-1, 32 << 20); m.write(b'x' * (32 << 20)); all.append(m)",
        (MEMORY,),
    ),
    "memory of eight processes": Bomb(
        "import mmap, os, time\n"
        "for _ in range(8):\n"
        "    if not os.fork():\n"
        "        all = []\n"
        "        while True:\n"
        "            m = mmap.mmap(-1, 8 << 20); m.write(b'x' * (8 << 20)); all.append(m)\n"
        "time.sleep(99)",
        (MEMORY,),
    ),
    "shared memory of System V": Bomb(
        "import ctypes\n"
        "c = ctypes.CDLL(None); c.shmat.restype = ctypes.c_void_p\n"
        "while True:\n"
        "    p = c.shmat(c.shmget(0, 32 << 20, 0o1600), None, 0)\n"
        "    ctypes.memset(p, 1, 32 << 20); c.shmdt(ctypes.c_void_p(p))",
        (MEMORY,),
    ),
    "memory of files without a name": Bomb(
        "import os\nall = []\nwhile True:\n    all.append(os.memfd_create('x')); os.write(all[-1], b'x' * (32 << 20))",
        (MEMORY,),
    ),
    "memory of a shell's program": Bomb(
        'python3 -c "x = [bytes([n]) * 9999999 for n in range(99)]"', (MEMORY,), "bash"
    ),
    "open files": Bomb("all = []\nwhile True: all.append(open('/dev/null'))", (COMPLETED,)),
    "full pipes": Bomb(
        "import os\nall = []\n"
        "while True:\n"
        "    r, w = os.pipe(); os.set_blocking(w, False); all += [r, w]\n"
        "    try:\n"
        "        while True: os.write(w, b'x' * 65536)\n"
        "    except BlockingIOError: pass",
        (COMPLETED,),
    ),
    "empty files": Bomb("n = 0\nwhile True:\n    n += 1\n    open(f'/tmp/{n}', 'w').close()", (TIMEOUT,), timeout=1),
    "folders in folders": Bomb(
        "import os\nwhile True: os.mkdir('d'); os.chdir('d')", (TIMEOUT, COMPLETED, MEMORY), timeout=1
    ),
    "output": Bomb("while True: print('x' * 1000)", (TIMEOUT,)),
    "closed streams": Bomb("import os\nfor n in range(3): os.close(n)\nprint('x')", (COMPLETED,)),
    "closed descriptors": Bomb("import os\nos.closerange(0, 4096)\nprint('x')", (CRASHED,)),
    "another program in the interpreter": Bomb("import os\nos.execv('/bin/true', ['true'])", (COMPLETED,)),
    "an end without ado": Bomb("import os\nos._exit(3)", (CRASHED,)),
    "a deadly signal to itself": Bomb("import os\nos.kill(os.getpid(), 9)", (CRASHED,)),
    "a deadly signal to all": Bomb("kill -9 -1; exit 0", (COMPLETED, CRASHED), "bash", kills_all=True),
    "a stop for itself": Bomb("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", (TIMEOUT,)),
    "recursion": Bomb("def f(): return f()\nf()", (COMPLETED,)),
    "recursion without a limit": Bomb(
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f()\nf()", (MEMORY, CRASHED, TIMEOUT), timeout=4
    ),
    "a fault": Bomb("import ctypes\nctypes.string_at(0)", (CRASHED,)),
    "interrupts swallowed": Bomb(
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass", (TIMEOUT,)
    ),
    "limits of its own": Bomb(
        "import resource\n"
        "for n in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE): resource.setrlimit(n, (0, 0))\n"
        "open('x')",
        (COMPLETED,),
    ),
    "a shell's forks": Bomb(":(){ :|:& };:\nwhile :; do :; done", MULTIPLIES, "bash"),
    "a shell's forks that ignore signals": Bomb("trap '' INT TERM HUP\n:(){ :|:& };:\nsleep 99", MULTIPLIES, "bash"),
    "a shell's jobs with a session each": Bomb("while :; do setsid sleep 999 & done", MULTIPLIES, "bash"),
    "a shell's recursion": Bomb("f() { f; }; f", (TIMEOUT, MEMORY, CRASHED), "bash"),
    "another program in the shell": Bomb("exec sleep 99", (TIMEOUT,), "bash"),
    "a shell without descriptors": Bomb(
        'for n in $(seq 0 255); do eval "exec $n>&-"; done; echo', (COMPLETED, CRASHED), "bash"
    ),
}  # fmt: skip
PRINTS: dict[Language, str] = {"python": "print(42)", "bash": "echo 42", "javascript": "console.log(42)"}


@pytest.fixture
async def engine(nothing_left: None, settings: Settings) -> AsyncIterator[Engine]:
    """An engine that looks at no code before it runs."""
    async with Engine(load_settings(vm_execution={"enabled": True, "code_validation": False})) as engine:
        yield engine


async def _all_goes_on(
    sandbox: AsyncSandbox, language: Language, other: str, neighbour: AsyncSandbox, *, kept: bool = True, left: int = 16
) -> None:
    async with asyncio.timeout(DEADLINE):
        assert (await sandbox.run_code(PRINTS[language], language)).stdout.endswith("42\n"), "the next code"
        assert (await sandbox.run_code("kept" if kept else "7", context=other)).text == "7", "the other context"
        assert (await sandbox.commands.run("echo 42")).stdout == "42\n", "a command"
        await sandbox.files.write("later", "here")
        assert await sandbox.files.read("later") == "here", "its files"
        assert (await sandbox.get_metrics()).processes <= left, "nothing of it is left"
        assert (await neighbour.run_code("6 * 7")).text == "42", "another sandbox"


async def _with_a_neighbour(engine: Engine, template: str = MINIMAL) -> tuple[AsyncSandbox, str, AsyncSandbox]:
    sandbox = await AsyncSandbox.create(template, engine=engine, limits=LIMITS)
    neighbour = await AsyncSandbox.create(MINIMAL, engine=engine)
    other = await sandbox.create_code_context("python")
    await sandbox.run_code("kept = 7", context=other)
    return sandbox, other.id, neighbour


@pytest.mark.parametrize("name", BOMBS)
async def test_a_bomb_ends_alone(engine: Engine, name: str) -> None:
    bomb = BOMBS[name]
    sandbox, other, neighbour = await _with_a_neighbour(engine)
    async with asyncio.timeout(DEADLINE):
        run, answer = await asyncio.gather(
            sandbox.run_code(bomb.code, bomb.language, timeout=bomb.seconds), neighbour.run_code("6 * 7")
        )
    assert answer.text == "42", "a neighbour meanwhile"
    assert run.termination_reason in bomb.reasons
    await _all_goes_on(sandbox, bomb.language, other, neighbour, kept=not bomb.kills_all)


NODE = {
    "memory": Bomb("const a = []; while (true) a.push(Buffer.alloc(10 << 20, 1))", (MEMORY,), "javascript"),
    "recursion": Bomb("function f() { return f() } f()", (COMPLETED,), "javascript"),
    "microtasks": Bomb("(function f() { Promise.resolve().then(f) })()", (TIMEOUT,), "javascript"),
    "closed descriptors": Bomb(
        "const fs = require('fs'); for (let i = 0; i < 200; i++) try { fs.closeSync(i) } catch {}",
        (CRASHED,),
        "javascript",
    ),
    "programs": Bomb(
        "const { spawn } = require('child_process'); while (true) spawn('sleep', ['99'])", MULTIPLIES, "javascript", 3
    ),
}


@pytest.mark.parametrize("name", NODE)
async def test_a_bomb_in_node_ends_alone(engine: Engine, name: str) -> None:
    bomb = NODE[name]
    sandbox, other, neighbour = await _with_a_neighbour(engine, "default")
    run = await sandbox.run_code(bomb.code, bomb.language, timeout=bomb.seconds)
    assert run.termination_reason in bomb.reasons
    await _all_goes_on(sandbox, bomb.language, other, neighbour)


@pytest.mark.parametrize("script", [":(){ :|:& };:", "for n in $(seq 60); do setsid sleep 999 & done"])
async def test_what_a_bomb_leaves_behind_keeps_nobody_from_starting_something(engine: Engine, script: str) -> None:
    """It has ended well, and its children take all processes that there may be."""
    sandbox, other, neighbour = await _with_a_neighbour(engine)
    await sandbox.commands.run(script, timeout=20)
    room = LIMITS.processes * 3 // 4
    async with asyncio.timeout(DEADLINE):
        while (await sandbox.get_metrics()).processes > room:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.05)
    await _all_goes_on(sandbox, "bash", other, neighbour, left=room)


@pytest.mark.parametrize("place", ["/home/user", "/tmp", "/dev/shm"])
async def test_a_full_disk_takes_nothing_more_and_the_sandbox_goes_on(engine: Engine, place: str) -> None:
    sandbox, other, neighbour = await _with_a_neighbour(engine)
    run = await sandbox.run_code(f"with open('{place}/f', 'wb', 0) as f:\n    while True: f.write(bytes(1 << 16))")
    assert run.termination_reason is DISK
    for language, code in PRINTS.items():
        if language != "javascript":
            assert (await sandbox.run_code(code, language)).stdout == "42\n"
    with pytest.raises(GuestFileError, match="No space left"):
        await sandbox.files.write(f"{place}/g", "x" * (1 << 20))
    assert (await sandbox.commands.run(f"rm {place}/f")).exit_code == 0
    await _all_goes_on(sandbox, "python", other, neighbour)


async def test_files_that_fill_the_memory_do_not_end_who_removes_them(engine: Engine) -> None:
    limits = MachineLimits(memory_mb=256, disk_mb=512)
    sandbox = await AsyncSandbox.create(MINIMAL, engine=engine, limits=limits)
    run = await sandbox.run_code("f = open('f', 'wb', 0)\nwhile True: f.write(bytes(1 << 20))")
    assert run.termination_reason is MEMORY
    assert run.error is not None
    assert "files in the home directory" in run.error.value
    assert "remove some" in run.error.value
    for language, code in PRINTS.items():
        if language != "javascript":
            assert (await sandbox.run_code(code, language)).stdout == "42\n"
    assert (await sandbox.run_code("import os, time\ntime.sleep(0.2)\nos.remove('f')")).succeeded
    async with asyncio.timeout(DEADLINE):
        while ((await sandbox.get_metrics()).memory_bytes or 0) > 150 << 20:  # noqa: ASYNC110 (gVisor gives it back later)
            await asyncio.sleep(0.05)
    assert (await sandbox.run_code("len(b'x' * (100 << 20))")).text == str(100 << 20)


async def test_a_machine_with_less_memory_has_less_room_for_files(engine: Engine) -> None:
    """Home, /tmp and /dev/shm together leave some of it to programs."""
    sandbox = await AsyncSandbox.create(MINIMAL, engine=engine, limits=MachineLimits(memory_mb=160))
    assert (await sandbox.get_metrics()).disk_total_bytes == 48 << 20
    code = (
        "for place in ('/home/user', '/tmp', '/dev/shm'):\n"
        "    try:\n"
        "        with open(place + '/f', 'wb', 0) as f:\n"
        "            while True: f.write(bytes(1 << 16))\n"
        "    except OSError as full: print(full.strerror)"
    )
    assert (await sandbox.run_code(code)).stdout == "No space left on device\n" * 3
    assert (await sandbox.run_code("6 * 7")).text == "42"


async def test_contexts_are_bounded_and_one_that_is_removed_makes_room(engine: Engine) -> None:
    sandbox = await AsyncSandbox.create(MINIMAL, engine=engine)
    contexts = [await sandbox.create_code_context("python") for _ in range(32)]
    with pytest.raises(ExecutionFailed, match=r"32 contexts.*remove_code_context"):
        await sandbox.create_code_context("python")
    assert (await sandbox.run_code("6 * 7", context=contexts[0])).text == "42"
    await sandbox.remove_code_context(contexts[1])
    again = await sandbox.create_code_context("bash")
    assert (await sandbox.run_code("echo 42", context=again)).stdout == "42\n"


async def test_code_that_becomes_another_program_says_so_where_that_fails(engine: Engine) -> None:
    sandbox = await AsyncSandbox.create(MINIMAL, engine=engine)
    run = await sandbox.run_code("import os\nos.execv('/bin/sh', ['sh', '-c', 'echo out; exit 3'])")
    assert (run.stdout, run.exit_code, run.context_survived) == ("out\n", 3, False)
    assert run.error is not None
    assert "exec" in run.error.value
    assert "subprocess" in run.error.value
