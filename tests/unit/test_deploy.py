"""The files of deploy/ fit the program, and a sandbox starts under what the unit allows.

Neither systemd nor Docker runs here. So the unit's capabilities and its filter of system calls are put around a real
sandbox by hand, and the Dockerfile is only read; what was tried beyond that is told in docs/operations.md.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

from commandline import PROGRAM
from emberbox import Settings, load_settings
from emberbox.cli.app import app
from emberbox.cli.exits import Exit
from emberbox.config import default_cache_dir, default_run_dir, default_state_dir
from emberbox.images.store import ImageStore
from emberbox.images.template import load_template
from emberbox.machines.gvisor.runsc import find_runsc

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNIT = (DEPLOY / "emberbox.service").read_text(encoding="utf-8")
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")


def directives(text: str) -> dict[str, str]:
    """Directives of a unit; lists go on where they are set again."""
    found: dict[str, str] = {}
    for name, value in re.findall(r"(?m)^(\w+)=(.*)$", text):
        found[name] = f"{found[name]} {value}" if name in found else value
    return found


SERVICE = directives(UNIT)


def commands() -> dict[str, Any]:
    """All commands of the program, those of groups as `group command`."""
    top: Any = typer.main.get_command(app)
    found: dict[str, Any] = {}
    for name, command in top.commands.items():
        found[name] = command
        found |= {f"{name} {below}": one for below, one in getattr(command, "commands", {}).items()}
    return found


COMMANDS = commands()


def check_words(words: list[str], where: str) -> None:
    """Fails where the program has no such command, or the command no such option."""
    words = words[2:] if words and words[0] == "--config" else words
    name = next((name for name in (" ".join(words[:2]), " ".join(words[:1])) if name in COMMANDS), None)
    assert name is not None, f"{where}: emberbox has no {' '.join(words[:2])}"
    options = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    for word in words:
        if word.startswith("--"):
            assert word in options, f"{where}: emberbox {name} has no {word}"


# --- the unit ---------------------------------------------------------------------------------------------------------


def test_the_unit_calls_the_program_as_it_is() -> None:
    program, *words = shlex.split(SERVICE["ExecStart"])
    assert program == "/opt/emberbox/current/venv/bin/emberbox"
    assert words[:2] == ["--config", "/etc/emberbox/emberbox.toml"]
    check_words(words, "ExecStart")


def test_the_unit_waits_until_it_serves_and_until_it_has_drained() -> None:
    server = Settings.model_construct().server
    assert SERVICE["Type"] == "notify", "run.py sends READY=1"
    assert int(SERVICE["TimeoutStopSec"]) >= server.drain_seconds + 10 + 10 + 60
    assert int(SERVICE["RestartPreventExitStatus"]) == Exit.USAGE
    assert "WatchdogSec" not in SERVICE, "nobody sends WATCHDOG=1"


def test_machines_outlive_a_crash_under_the_unit() -> None:
    assert SERVICE["KillMode"] == "process", "anything else kills the spawner"
    assert SERVICE["RuntimeDirectoryPreserve"] == "yes", "the spawner's socket is in it"
    assert "PrivateTmp" not in SERVICE, "its folder goes with the server; the spawner needs it"
    assert SERVICE["Restart"] == "on-failure"
    assert int(SERVICE["RestartSec"]) < Settings.model_construct().adoption_seconds / 10


def test_nothing_is_set_that_would_break_machines() -> None:
    for name in ("ProtectControlGroups", "MemoryDenyWriteExecute", "ProcSubset", "PrivateUsers", "RestrictSUIDSGID"):
        assert name not in SERVICE, name
        assert f"{name}=" in UNIT, f"why {name} is missing is to be said"
    assert SERVICE["SystemCallErrorNumber"] == "EPERM", "a kill would come before gVisor's own answer"


def test_the_folders_of_the_unit_are_those_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emberbox.config.settings.os.getuid", lambda: 0)
    for pair in shlex.split(SERVICE["Environment"]):
        monkeypatch.setenv(*pair.split("=", 1))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert default_cache_dir() == Path("/var/cache") / SERVICE["CacheDirectory"]
    assert default_state_dir() == Path("/var/lib") / SERVICE["StateDirectory"]
    assert default_run_dir() == Path("/run") / SERVICE["RuntimeDirectory"]


def test_systemd_finds_nothing_wrong() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = str(DEPLOY / "emberbox.service")
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    wrong = [line for line in done.stderr.splitlines() if "is not executable" not in line]  # it is not installed here
    assert wrong == []


@pytest.mark.e2e
@pytest.mark.usefixtures("run_dir")
def test_a_sandbox_starts_under_the_units_restrictions(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings()
    if os.getuid() != 0 or find_runsc(settings)[0] is None:
        pytest.skip("only root can take capabilities away, and runsc is needed")
    if ImageStore(settings).find(load_template("minimal", settings)) is None:
        pytest.skip("the image minimal is not built")
    code = "import pathlib; print(6 * 7)"
    argv = [*PROGRAM, "exec", "-t", "minimal", "-l", "python", "-c", code]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=120, check=False, preexec_fn=restrictions(SERVICE)
    )
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr
    weaker = SERVICE | {"CapabilityBoundingSet": SERVICE["CapabilityBoundingSet"].replace("CAP_SYS_ADMIN", "")}
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=120, check=False, preexec_fn=restrictions(weaker)
    )
    assert done.returncode == Exit.NO_BACKEND, "the restrictions are not in force"


CAPABILITIES = (  # noqa: SIM905 (shorter than a list)
    "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service "
    "net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin "
    "sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap mac_override "
    "mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore"
).split()
"""In the order of linux/capability.h."""


def restrictions(unit: dict[str, str]) -> Callable[[], None]:
    """What a child calls before its exec to be restricted as the unit is: capabilities, and system calls where
    libseccomp and systemd's lists of them are here."""
    libc = ctypes.CDLL(None, use_errno=True)
    kept = {name.removeprefix("CAP_").lower() for name in unit["CapabilityBoundingSet"].split()}
    assert kept <= set(CAPABILITIES)
    dropped = [number for number, name in enumerate(CAPABILITIES) if name not in kept]
    load = _filter_of(unit["SystemCallFilter"].split())

    def restrict() -> None:
        for number in dropped:
            libc.prctl(24, number, 0, 0, 0)  # PR_CAPBSET_DROP
        libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        load()

    return restrict


def _filter_of(wanted: list[str]) -> Callable[[], None]:
    if shutil.which("systemd-analyze") is None or not Path("/usr/lib/x86_64-linux-gnu/libseccomp.so.2").exists():
        return lambda: None
    seccomp = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(0x00050000 | 1)))  # SCMP_ACT_ERRNO(EPERM)
    for name in _calls(["@default", *wanted]):
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        seccomp.seccomp_rule_add_array(context, ctypes.c_uint32(0x7FFF0000), number, 0, None)  # SCMP_ACT_ALLOW

    def load() -> None:
        if seccomp.seccomp_load(context) != 0:
            os._exit(99)

    return load


def _calls(names: list[str]) -> set[str]:
    """System calls of systemd's sets."""
    found: set[str] = set()
    for name in names:
        if name.startswith("@"):
            argv = ["systemd-analyze", "--no-pager", "syscall-filter", name]
            lines = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()[1:]
            found |= _calls([line.strip() for line in lines if line.strip() and not line.strip().startswith("#")])
        else:
            found.add(name)
    return found


# --- the container ----------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile, in order."""
    text = re.sub(r"(?m)^#.*\n", "", DOCKERFILE).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def test_the_base_is_pinned_by_tag_and_old_enough_a_python_is_in_it() -> None:
    bases = {rest.split()[0] for word, rest in instructions() if word == "FROM"}
    assert bases == {"debian:bookworm-slim"}, "a tag, and not `latest`"
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert set(re.findall(r"lib/python([\d.]+)/", DOCKERFILE)) == {"3.11"}, "that of bookworm"
    assert requires == ">=3.11"


def test_dependencies_are_checked_against_the_lock() -> None:
    installs = [rest for word, rest in instructions() if word == "RUN" and "pip install" in rest]
    assert len(installs) == 1
    for words in ("--require-hashes", "--only-binary=:all:", "-r /build/runtime.lock"):
        assert words in installs[0]
    assert ("COPY", "requirements/runtime.lock /build/runtime.lock") in instructions()


def test_what_the_container_says_of_itself() -> None:
    said = dict(instructions())
    port = int(said["EXPOSE"])
    assert port >= 1024
    assert f"EMBERBOX_SERVER__PORT={port}" in said["ENV"]
    assert f"http://127.0.0.1:{port}/health" in said["HEALTHCHECK"]
    assert said["USER"] == "root"
    assert json.loads(said["VOLUME"]) == ["/var/lib/emberbox", "/var/cache/emberbox"]
    for name in ("EMBERBOX_STATE_DIR=/var/lib/emberbox", "EMBERBOX_CACHE_DIR=/var/cache/emberbox"):
        assert name in said["ENV"]
    assert said["STOPSIGNAL"] == "SIGTERM"
    check_words(json.loads(said["CMD"]), "CMD")
    assert ("COPY", f"deploy/container-entrypoint.sh {json.loads(said['ENTRYPOINT'])[0]}") in instructions()


def test_the_containers_variables_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in re.findall(r"(EMBERBOX_\w+)=(\S+)", dict(instructions())["ENV"]):
        monkeypatch.setenv(name, value if name != "EMBERBOX_CONFIG" else str(DEPLOY / "emberbox.toml"))
    settings = load_settings()
    assert (settings.server.host, settings.server.port) == ("0.0.0.0", 8080)  # noqa: S104
    assert settings.state_dir == Path("/var/lib/emberbox")


def test_everything_that_is_copied_is_there() -> None:
    sources = [
        source
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source


@pytest.mark.parametrize("name", ["install.sh", "container-entrypoint.sh"])
def test_scripts_are_scripts(name: str) -> None:
    path = DEPLOY / name
    assert os.access(path, os.X_OK)
    assert subprocess.run(["sh", "-n", path], check=False).returncode == 0
    assert "set -eu\n" in path.read_text()


# --- what is said of commands -----------------------------------------------------------------------------------------


def told_commands() -> list[Any]:
    """Calls of the program in code blocks, in `…`, and in comments of deploy/."""
    found = []
    pages = [ROOT / "docs/operations.md", ROOT / "docs/api.md", *sorted(DEPLOY.glob("*"))]
    for path in pages:
        text = path.read_text(encoding="utf-8")
        calls = re.findall(r"`emberbox ((?:--config \S+ )?[a-z][^`|&]*)`", text)
        calls += re.findall(r"(?m)^(?:#   \$run --rm |)emberbox ((?:--config \S+ )?[a-z][^#\n&|]*)", text)
        found += [pytest.param(call.strip(), path.name, id=f"{path.name}: {call.strip()[:60]}") for call in calls]
    return found


@pytest.mark.parametrize(("call", "where"), told_commands())
def test_commands_that_are_told_exist(call: str, where: str) -> None:
    words = call.split()
    if words[0] == "config" and "config" not in COMMANDS:
        pytest.skip("emberbox config is not registered")
    check_words(words, where)


def test_files_that_are_told_of_exist() -> None:
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    told = set(re.findall(r"deploy/[\w.-]+\w", text))
    assert {"deploy/emberbox.service", "deploy/Dockerfile", "deploy/alerts.yml"} <= told
    for name in told:
        assert (ROOT / name).exists(), name


def test_the_settings_of_the_operations_page_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    for number, block in enumerate(re.findall(r"(?ms)^```toml\n(.*?)^```", text)):
        path = tmp_path / f"{number}.toml"
        path.write_text(block)
        monkeypatch.setenv("EMBERBOX_CONFIG", str(path))
        assert load_settings().server.allowed_hosts == ["agents.example.com"]


# --- monitoring -------------------------------------------------------------------------------------------------------


def rules() -> dict[str, dict[str, Any]]:
    yaml = importlib.import_module("yaml")
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


@pytest.mark.parametrize(
    ("alert", "figure"),
    [
        ("EmberboxPoolLow", "emberbox_pool_ready"),
        ("EmberboxExecutionsSlow", "histogram_quantile(0.95"),
        ("EmberboxMemory", "process_resident_memory_bytes"),
        ("EmberboxSandboxesNearMaximum", "emberbox_sandboxes_max"),
        ("EmberboxExecutionsFailing", "emberbox_executions_total"),
        ("EmberboxPolicyHits", "emberbox_policy_hits_total"),
        ("EmberboxApprovalsWaiting", "emberbox_approvals_waiting"),
        ("EmberboxDown", "up{"),
        ("EmberboxNotReady", 'route="/ready"'),
        ("EmberboxSnapshotsFailing", "emberbox_snapshots_total"),
    ],
)
def test_what_is_watched(alert: str, figure: str) -> None:
    assert figure in rules()[alert]["expr"]


def test_every_alert_says_how_bad_it_is_and_what_it_means() -> None:
    for name, rule in rules().items():
        assert rule["labels"]["severity"] in {"warning", "critical"}, name
        assert rule["annotations"]["summary"], name
        assert 'job="emberbox"' in rule["expr"], name


def test_prometheus_takes_the_rules_and_they_fire() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed")
    for argv in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run(["promtool", *argv], cwd=DEPLOY, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_test_of_the_rules_counts_them_all() -> None:
    text = (DEPLOY / "alerts_test.yml").read_text(encoding="utf-8")
    assert f"value: {len(rules())}}}" in text


def test_the_dashboard_is_one() -> None:
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text(encoding="utf-8"))
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells
        for target in panel.get("targets", []):
            assert target["datasource"]["uid"] == "${datasource}"
            assert 'job=~"$job"' in target["expr"], panel["title"]
    assert {"datasource", "job", "instance"} == {one["name"] for one in dashboard["templating"]["list"]}
