"""Promises of SECURITY.md that no other test holds: tried by code in real sandboxes, by a look at their processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from commandline import emberbox
from emberbox import Engine, MachineLimits, Sandbox, TerminationReason, load_settings
from emberbox.host.rundir import processes_of
from emberbox.machines.gvisor.machine import GvisorMachine
from served import Served
from waiting import until

NOBODY = 65534
LIBC = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
TRY = "def tried(what):\n    try: what()\n    except OSError as error: return error.strerror\n    return 'POSSIBLE'\n"


@pytest.fixture
def sandbox(nothing_left: None) -> Iterator[Sandbox]:
    with Sandbox.create("minimal", limits=MachineLimits(memory_mb=512, disk_mb=16, tmp_mb=16, vcpus=0.5)) as sandbox:
        yield sandbox


def told(sandbox: Sandbox, code: str) -> Any:
    """What the code prints last, which is JSON."""
    run = sandbox.run_code(f"import json\n{LIBC}{TRY}{code}")
    assert run.error is None, run.error
    return json.loads(run.stdout.splitlines()[-1])


# --- user and agent -------------------------------------------------------------------------------------------------


def test_the_agent_is_neither_traced_nor_read_nor_written_to(sandbox: Sandbox) -> None:
    """Neither the agent nor its zygote; nor is any descriptor of theirs opened that is not the user's own already."""
    found = told(
        sandbox,
        "class Part(ctypes.Structure): _fields_ = [('at', ctypes.c_void_p), ('size', ctypes.c_size_t)]\n"
        "def call(name, *args):\n"
        "    if getattr(libc, name)(*args) < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))\n"
        "here = ctypes.create_string_buffer(8)\n"
        "mine, theirs = Part(ctypes.addressof(here), 8), Part(0x400000, 8)\n"
        "parts = ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0\n"
        "found = {}\n"
        "for pid in [int(name) for name in os.listdir('/proc') if name.isdigit()]:\n"
        "    if os.stat(f'/proc/{pid}').st_uid: continue\n"
        "    answers = found[pid] = {\n"
        "        'attach': tried(lambda: call('ptrace', 16, pid, 0, 0)),\n"
        "        'seize': tried(lambda: call('ptrace', 0x4206, pid, 0, 0)),\n"
        "        'read': tried(lambda: call('process_vm_readv', pid, *parts)),\n"
        "        'write': tried(lambda: call('process_vm_writev', pid, *parts)),\n"
        "        'limit': tried(lambda: __import__('resource').prlimit(pid, 7, (9, 9))),\n"
        "    }\n"
        "    for number in (0, 2, 9, 15, 19): answers[number] = tried(lambda: os.kill(pid, number))\n"
        "    for name in ('cwd', 'root', 'exe'): answers[name] = tried(lambda: os.readlink(f'/proc/{pid}/{name}'))\n"
        "    for name in ('mem', 'comm', 'oom_score_adj', 'uid_map'):\n"
        "        place = f'/proc/{pid}/{name}'\n"
        "        answers[f'write {name}'] = tried(lambda: open(place, 'r+b', buffering=0).write(b'1'))\n"
        "    for fd in os.listdir(f'/proc/{pid}/fd'):\n"
        "        path = f'/proc/{pid}/fd/{fd}'\n"
        "        try:\n"
        "            what = os.readlink(path)\n"
        "            if what in ('/dev/null', '/proc/meminfo') or os.stat(path).st_uid == os.getuid(): continue\n"
        "        except OSError: continue\n"
        "        for mode in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):\n"
        "            answers[f'fd {fd} {what} {mode}'] = tried(lambda: os.open(path, mode | os.O_NONBLOCK))\n"
        "print(json.dumps(found))\n",
    )
    assert "1" in found, "the agent"
    assert len(found) >= 2, "and the zygote"
    assert sum(" host:" in name for name in found["1"]) >= 6, "both ends of the channel, each way"
    possible = [
        (pid, what) for pid, answers in found.items() for what, answer in answers.items() if answer == "POSSIBLE"
    ]
    assert possible == []
    assert sandbox.run_code("40 + 2").text == "42"


@pytest.mark.parametrize("language", ["python", "bash", "program"])
def test_user_code_gains_no_privileges(sandbox: Sandbox, language: str) -> None:
    """prctl(PR_GET_NO_NEW_PRIVS); its uid and capabilities are looked at in test_isolation.py."""
    code = "import ctypes, os; print(os.getresuid(), os.getgroups(), ctypes.CDLL(None).prctl(39, 0, 0, 0, 0))"
    if language == "python":
        said = sandbox.run_code(code).stdout
    elif language == "bash":
        said = sandbox.run_code(f'/usr/bin/python3 -c "{code}"', "bash").stdout
    else:
        said = sandbox.commands.run(["/usr/bin/python3", "-c", code]).stdout
    assert said == "(1000, 1000, 1000) [] 1\n"


def test_no_set_uid_program_in_the_default_image(nothing_left: None) -> None:
    with Sandbox.create() as sandbox:
        found = sandbox.commands.run("find / -xdev -perm /6000 -type f 2>/dev/null; true", timeout=120)
        assert (found.stdout, found.exit_code) == ("", 0)


# --- the machine ----------------------------------------------------------------------------------------------------


def test_there_is_a_loopback_device_and_nothing_else(sandbox: Sandbox) -> None:
    found = told(
        sandbox,
        "import socket\n"
        "names = [name for _, name in socket.if_nameindex()]\n"
        "table = [line.partition(':')[0].strip() for line in open('/proc/net/dev').read().splitlines()[2:]]\n"
        "raw = [tried(lambda: socket.socket(family, socket.SOCK_RAW, kind)) for family, kind in ((2, 1), (17, 3))]\n"
        "print(json.dumps([names, table, raw]))\n",
    )
    assert found == [["lo"], ["lo"], ["Operation not permitted"] * 2]


def test_folders_that_can_be_written_are_small_memory_file_systems(sandbox: Sandbox) -> None:
    """Nothing else can be written to, and each of these is full at its size."""
    found = told(
        sandbox,
        "mounts = {line.split()[1]: line.split()[2:4] for line in open('/proc/self/mounts')}\n"
        "sizes = {}\n"
        "for place in ('/tmp', '/run', '/dev/shm', '/home/user'):\n"
        "    told = os.statvfs(place)\n"
        "    sizes[place] = [mounts[place][0], told.f_blocks * told.f_frsize >> 20]\n"
        "can = []\n"
        "for place in mounts:\n"
        "    if tried(lambda: open(place + '/new', 'w').write('x')) == 'POSSIBLE': can.append(place)\n"
        "def fill():\n"
        "    with open('/dev/shm/f', 'wb', buffering=0) as file:\n"
        "        for _ in range(64): file.write(bytes(1 << 20))\n"
        "print(json.dumps([sizes, sorted(can), tried(fill), mounts['/'][1].split(',')[0]]))\n",
    )
    sizes, can, full, root = found
    assert sizes == {
        "/tmp": ["tmpfs", 16],
        "/run": ["tmpfs", 16],
        "/dev/shm": ["tmpfs", 16],
        "/home/user": ["tmpfs", 16],
    }
    assert can == ["/dev/shm", "/home/user", "/tmp"]
    assert (full, root) == ("No space left on device", "ro")


IN_A_NAMESPACE = (
    "assert libc.unshare(0x10000000 | 0x20000 | 0x40000000) == 0\n"  # user, mounts, network
    "status = open('/proc/self/status').read()\n"
    "assert 'CapEff:\\t0000000000000000' not in status, 'it has capabilities there'\n"
)


def test_a_user_namespace_gives_nothing_of_the_host_and_nothing_of_the_agent(sandbox: Sandbox) -> None:
    """In one of its own a program has all capabilities and may mount: the host still refuses to write to the image,
    the agent stays out of reach, and there is no network."""
    found = told(
        sandbox,
        f"{IN_A_NAMESPACE}"
        "import socket\n"
        "again = [libc.mount(None, place, None, 32, None) for place in (b'/', b'/opt/emberbox/guest')]\n"  # MS_REMOUNT
        "wrote = tried(lambda: open('/var/tmp/new', 'w'))\n"  # which everybody may write to
        "if wrote == 'POSSIBLE': os.unlink('/var/tmp/new')\n"
        "print(json.dumps([again, wrote, tried(lambda: os.kill(1, 9)),\n"
        "    tried(lambda: open('/proc/1/mem', 'rb')), [name for _, name in socket.if_nameindex()]]))\n",
    )
    assert found == [[0, 0], "Read-only file system", "Operation not permitted", "Permission denied", ["lo"]]
    assert sandbox.commands.run("stat -c %a /var/tmp").stdout == "1777\n", "only the file system refuses"


def test_a_user_namespace_gets_no_more_memory_than_the_machine(sandbox: Sandbox) -> None:
    run = sandbox.run_code(
        f"{LIBC}{IN_A_NAMESPACE}"
        "assert libc.mount(b'x', b'/home/user', b'tmpfs', 0, b'size=100g') == 0\n"
        "with open('/home/user/f', 'wb', buffering=0) as file:\n"
        "    for _ in range(2048): file.write(os.urandom(1 << 20))\n",
        timeout=60,
    )
    assert run.termination_reason is TerminationReason.MEMORY


# --- host side ------------------------------------------------------------------------------------------------------


def _facts(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_helper_programs_have_a_clean_environment_no_new_privileges_and_a_filter(
    nothing_left: None, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """runsc's processes of a machine, and the spawner that starts them."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-host")
    with Sandbox.create("minimal") as sandbox:
        assert sandbox.run_code("1").text == "1"
        pids = processes_of(f"{run_dir}/")
        command = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in pids}
        spawners = [pid for pid in pids if any(b"spawner_main" in word for word in command[pid])]
        sandboxes = [pid for pid in pids if b"boot" in command[pid]]
        gofers = [pid for pid in pids if b"gofer" in command[pid]]
        assert [len(spawners), len(sandboxes) >= 1, len(gofers) >= 1] == [1, True, True]
        for pid in pids:
            variables = dict(
                line.split("=", 1) for line in Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0") if line
            )
            assert variables.keys() <= {"PATH", "GLIBC_TUNABLES", "GOMEMLIMIT", "LC_CTYPE"}, command[pid]
            assert _facts(pid)["NoNewPrivs"] == "1", command[pid]
        for pid in sandboxes + gofers:
            facts, above = _facts(pid), _facts(spawners[0])
            assert facts["Seccomp"] == "2"
            # the spawner has one already, which is inherited; kernels before 5.9 do not count them
            assert "Seccomp_filters" not in facts or int(facts["Seccomp_filters"]) > int(above["Seccomp_filters"])
        here = {kind: Path(f"/proc/self/ns/{kind}").readlink() for kind in ("net", "mnt", "ipc", "uts")}
        for pid in sandboxes:
            there = {kind: Path(f"/proc/{pid}/ns/{kind}").readlink() for kind in here}
            assert [kind for kind in here if here[kind] == there[kind]] == []
            devices = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
            assert [line.partition(":")[0].strip() for line in devices] == ["lo"]


async def test_memory_processor_and_processes_are_capped_by_the_kernel(engine: Engine) -> None:
    limits = MachineLimits(memory_mb=300, vcpus=0.5)
    session = await engine.create_sandbox("minimal", limits=limits)
    machine = session.machine
    assert isinstance(machine, GvisorMachine)
    if machine.group is None:
        pytest.skip("no writable cgroup here: tests/integration/test_rootless.py looks at what is done then")
    paths = machine.group.paths

    def value(controller: str, name: str) -> str:
        return (paths[controller] / name).read_text().strip()

    if machine.group.version == "v1":
        assert value("memory", "memory.limit_in_bytes") == str(300 << 20)
        assert int(value("cpu", "cpu.cfs_quota_us")) * 2 == int(value("cpu", "cpu.cfs_period_us"))
    else:
        assert value("memory", "memory.max") == str(300 << 20)
        quota, period = value("cpu", "cpu.max").split()
        assert int(quota) * 2 == int(period)
    assert int(value("pids", "pids.max")) <= 4096
    members = {path: set(map(int, path.read_text().split())) for path in machine.group.join}
    wanted = {process.pid for process in machine._processes}
    assert len(wanted) == 2, "sandbox and gofer"
    assert all(wanted <= pids for pids in members.values())


async def test_whoever_is_not_this_user_cannot_take_machines_over(nothing_left: None, run_dir: Path) -> None:
    """The socket of a spawner that lingers, where everybody may look into the base."""
    if os.getuid() != 0:
        pytest.skip("only root can be somebody else")
    run_dir.chmod(0o755)
    async with Engine(load_settings(), durable=True) as engine:
        session = await engine.create_sandbox("minimal")
        (place,) = run_dir.iterdir()
        assert (place / "adopt").is_socket()
        assert place.stat().st_mode & 0o777 == 0o700
        code = (
            f"import os, socket; os.setgroups([]); os.setresgid(*[{NOBODY}] * 3); os.setresuid(*[{NOBODY}] * 3)\n"
            f"os.listdir({str(run_dir)!r})\n"
            "try: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect("
            f"{str(place / 'adopt')!r})\n"
            "except PermissionError: print('refused')\n"
        )
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False
        )
        assert done.stdout == "refused\n", done.stderr
        await engine.kill_sandbox(session.id)


LINGERS = """
import asyncio, os, signal
from emberbox import Engine, load_settings

async def main():
    engine = Engine(load_settings(), durable=True)
    await engine.create_sandbox("minimal")
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_with_no_time_for_adoption_nothing_runs_without_its_engine(nothing_left: None, run_dir: Path) -> None:
    environment = {**os.environ, "EMBERBOX_ADOPTION_SECONDS": "0"}
    done = subprocess.run([sys.executable, "-c", LINGERS], env=environment, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    # less than the time that machines are kept for by default
    until(lambda: not processes_of(f"{run_dir}/"), "the end of the machine and its spawner", 30)
    until(lambda: not list(run_dir.iterdir()), "its files are gone")


def test_files_of_snapshots_are_private_where_new_files_are_for_the_group(
    nothing_left: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a running sandbox, of its template, and those that are kept; an export as well."""
    monkeypatch.setenv("EMBERBOX_SNAPSHOT_DIR", str(tmp_path / "snapshots"))
    previous = os.umask(0o002)
    try:
        with Sandbox.create("minimal", envs={"SECRET": "s3cret"}) as sandbox:
            sandbox.snapshot("one")
            kept = sandbox.snapshot("two", keep=True)
            settings = load_settings()
            folders = [tmp_path / "snapshots", settings.state_dir / "snapshots"]
            files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
            memories = [path for path in files if path.stat().st_size > 1 << 20]
            assert {str(path.parent)[len(str(tmp_path)) :].split("/")[1] for path in memories} == {"snapshots", "state"}
            assert len(memories) >= 3, "of the template, of one, of two"
            open_ones = [path for path in files if not _shut_away(path, tmp_path)]
            assert open_ones == []
            records = list(folders[1].rglob("snapshot.json"))
            assert [path.stat().st_mode & 0o777 for path in records] == [0o600]
            target = tmp_path / "out.tar"
            assert emberbox("snapshot", "export", kept.snapshot_id, str(target)).returncode == 0
            assert target.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(previous)


def _shut_away(path: Path, base: Path) -> bool:
    """Whether a folder above it, below `base`, lets in nobody but its owner."""
    return any(
        above.stat().st_mode & 0o777 == 0o700 for above in path.parents if above.is_relative_to(base) and above != base
    )


# --- the server -----------------------------------------------------------------------------------------------------


def test_the_log_holds_no_code_no_output_and_no_token(nothing_left: None, tmp_path: Path) -> None:
    """Of what runs, fails, is refused, is not valid or comes without a right; by requests and by messages."""
    server = Served({"VM_EXECUTION__DEFAULT_VM_TYPE": "minimal", "LOG_LEVEL": "debug"})
    try:
        token = server.token("ada", "--agent", "ada")
        server.start()
        secret = token.split("_", 2)[2]
        wrong = f"ebx_{'0' * 12}_{'wrongsesame' * 4}"[:60]
        with server.client(token) as client:
            codes = [
                "print('code' + 'sesame', 'out' + 'sesame')", "raise ValueError('codesesame outsesame')",
                "import os; os.system('codesesame')", "this is no python: codesesame", "1 / 0 # codesesame",
            ]  # fmt: skip
            answers = [client.post("/api/llm/execute", json={"language": "python", "code": code}) for code in codes]
            assert {answer.status_code for answer in answers} >= {200, 422}
            vm = client.get("/api/vms").json()["vms"][0]["id"]
            client.post(
                "/api/llm/execute", content=b'{"code": "codesesame"', headers={"content-type": "application/json"}
            )
            client.post("/api/llm/execute", json={"language": "codesesame", "code": 5, "codesesame": 1})
            client.post("/api/llm/parse-execute", json={"llm_response": "Run:\n```python\nprint('codesesame')\n```\n"})
            client.get("/api/vms", params={"token": wrong, "access_token": secret})
            client.get("/api/vms", headers={"Authorization": f"Bearer {wrong}"})
            client.get("/api/vms", headers={"Authorization": f"Basic {secret}"})
            url = f"{server.url.replace('http', 'ws')}/ws/{vm}"
            with connect(url, additional_headers={"Authorization": f"Bearer {token}"}, proxy=None) as ws:
                for data in ({"language": "python", "code": codes[0]}, {"codesesame": "codesesame"}, "codesesame"):
                    ws.send(json.dumps({"message_type": "LlmExecuteCode", "data": data}))
                    ws.recv(timeout=30)
                ws.send("codesesame")
                ws.recv(timeout=30)
            history = client.get(f"/api/vms/{vm}/history").text
            assert "codesesame" in history, "the history does hold it"
            assert "outsesame" in history
        assert any(line.get("status") == 422 for line in server.logs()), "it was logged"
        assert any(line.get("status") == 401 for line in server.logs())
    finally:
        server.finish()
    log = "\n".join(server.lines)
    found = [word for word in ("codesesame", "outsesame", secret, "wrongsesame", "Bearer") if word in log]
    assert found == []


def test_a_server_without_tokens_is_on_loopback_only(nothing_left: None) -> None:
    server = Served()
    try:
        server.start()
        port = int(server.url.rpartition(":")[2])
        listening = [line.split()[1] for table in ("tcp", "tcp6") for line in _table(table) if _listens(line, port)]
        assert listening == [f"{int.from_bytes(socket.inet_aton('127.0.0.1'), sys.byteorder):08X}:{port:04X}"]
    finally:
        server.finish()


def _table(name: str) -> list[str]:
    return Path(f"/proc/net/{name}").read_text().splitlines()[1:]


def _listens(line: str, port: int) -> bool:
    fields = line.split()
    return fields[3] == "0A" and fields[1].endswith(f":{port:04X}")
