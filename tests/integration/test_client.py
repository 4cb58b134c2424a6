"""The clients of a server: `VmExecutionClient` and its twin, `DirectSessionAdapter`, `FcctlBridge` in both modes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from emberbox import (
    AsyncSandbox,
    DirectSessionAdapter,
    Engine,
    FcctlBridge,
    Sandbox,
    Settings,
    VmExecutionClient,
    VmExecutionClientSync,
)
from emberbox.engine import ExecuteRequest
from emberbox.errors import (
    ApiError,
    ConfigError,
    Conflict,
    PolicyBlocked,
    SessionNotFound,
    SnapshotNotFound,
    Unauthorized,
    UnsupportedLanguage,
    ValidationFailed,
    VmConnectionError,
)
from emberbox.hooks import (
    Allow,
    Block,
    Hook,
    HookDecision,
    HookManager,
    Modify,
    OutputSanitizerHook,
    PostToolContext,
    PreToolContext,
)
from emberbox.models import HistoryConfig, VmExecuteRequest, VmExecuteResponse, VmExecutionConfig
from served import Served

pytestmark = pytest.mark.usefixtures("nothing_left")
AGENT = "clio"


def config(served: Served) -> VmExecutionConfig:
    return VmExecutionConfig(api_base_url=served.url, default_vm_type="minimal")


@pytest.fixture(autouse=True)
def _end_machines(served: Served) -> Iterator[None]:
    yield
    served.end_machines()


@pytest.fixture
async def client(served: Served) -> AsyncIterator[VmExecutionClient]:
    async with VmExecutionClient(config(served)) as client:
        yield client


# --- VmExecutionClient ------------------------------------------------------------------------------------------------


async def test_every_language_runs(client: VmExecutionClient) -> None:
    assert (await client.execute_python(AGENT, "print(6 * 7)")).stdout == "42\n"
    assert (await client.execute_javascript(AGENT, "console.log(6 * 7)")).stdout == "42\n"
    bash = await client.execute_bash(AGENT, "echo $((6 * 7)); exit 3")
    assert (bash.stdout, bash.exit_code) == ("42\n", 3)


@pytest.mark.rust
async def test_rust_runs(client: VmExecutionClient) -> None:
    run = await client.execute_rust(AGENT, 'fn main() { println!("{}", 6 * 7); }')
    assert run.stdout == "42\n"


async def test_a_machine_of_its_own(client: VmExecutionClient) -> None:
    vm = await client.provision_vm(AGENT, name="own")
    assert (await client.wait_for_vm_ready(vm.id)).status == "ready"
    await client.execute_python(AGENT, "x = 1", vm.id)
    assert (await client.execute_python(AGENT, "print(x)", vm.id)).stdout == "1\n"
    assert [one.id for one in (await client.get_vm_pool(AGENT)).available_vms] == [vm.id]
    await client.kill_vm(vm.id)
    await client.kill_vm(vm.id)
    with pytest.raises(SessionNotFound, match=vm.id):
        await client.wait_for_vm_ready(vm.id)
    with pytest.raises(SessionNotFound):
        await client.execute_python(AGENT, "1", vm.id)


async def test_output_comes_as_it_is_printed(client: VmExecutionClient) -> None:
    vm = (await client.provision_vm(AGENT)).id
    seen: list[str] = []

    async def heard(text: str) -> None:
        seen.append(text)
        if text == "first\n":
            await client.execute_bash(AGENT, "touch go", vm)

    code = (
        "import pathlib, time\nprint('first', flush=True)\n"
        "while not pathlib.Path('go').exists(): time.sleep(0.01)\nprint('second')\n42"
    )
    results: list[Any] = []
    request = VmExecuteRequest(agent_id=AGENT, language="python", code=code, vm_id=vm)
    run = await client.execute_code(request, on_stdout=heard, on_result=results.append)
    assert seen == ["first\n", "second\n"]
    assert (run.stdout, results[0].text) == ("first\nsecond\n", "42")


async def test_a_cancelled_call_cancels_the_execution(client: VmExecutionClient) -> None:
    vm = (await client.provision_vm(AGENT)).id
    beat = "import time\nwhile True: open('beat', 'a').write('x'); time.sleep(0.01)"
    for options in ({}, {"on_stdout": print}, {"idempotency_key": "c1"}):
        await client.execute_bash(AGENT, "rm -f beat", vm)
        call = asyncio.create_task(client.execute_python(AGENT, beat, vm, **options))
        async with asyncio.timeout(30):
            while (await client.execute_bash(AGENT, "test -e beat", vm)).exit_code:
                pass
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            check = "a=$(stat -c %s beat); sleep 0.1; test $a = $(stat -c %s beat)"
            while (await client.execute_bash(AGENT, check, vm)).exit_code:
                pass


async def test_an_answer_is_run(client: VmExecutionClient) -> None:
    answer = "Run this:\n\n```python\nprint('hi')\n```\n"
    found = await client.parse_and_execute(AGENT, answer)
    assert [run.stdout for run in found.execution_results] == ["hi\n"]
    only = await client.parse_and_execute(AGENT, answer, auto_execute=False)
    assert (len(only.code_blocks), only.execution_results) == (1, [])


async def test_history_and_rollback(client: VmExecutionClient) -> None:
    vm = (await client.provision_vm(AGENT)).id
    assert await client.get_last_successful_snapshot(vm) is None
    await client.execute_python(AGENT, "x = 1", vm)
    snapshot = await client.create_snapshot(vm, "good")
    await client.execute_python(AGENT, "x = 2; 1 / 0", vm)
    await client.create_snapshot(vm, "bad")
    assert await client.get_last_successful_snapshot(vm) == snapshot
    assert [entry.command for entry in (await client.query_failures(vm)).history] == ["x = 2; 1 / 0"]
    assert (await client.query_history(vm, limit=1)).total == 2
    back = await client.rollback_to_last_success(vm)
    assert back.snapshot_id == snapshot
    assert (await client.execute_python(AGENT, "print(x)", vm)).stdout == "1\n"
    back = await client.rollback_to_snapshot(vm, snapshot, create_pre_rollback_snapshot=True)
    assert back.pre_rollback_snapshot_id
    with pytest.raises(SnapshotNotFound):
        await client.rollback_to_snapshot(vm, "sn-nothing")


async def test_errors_are_the_engines_own(client: VmExecutionClient) -> None:
    with pytest.raises(UnsupportedLanguage) as unsupported:
        await client.execute_code(VmExecuteRequest(language="cobol", code="x"))
    assert unsupported.value.remediation
    with pytest.raises(PolicyBlocked) as blocked:
        await client.execute_bash(AGENT, "rm -rf /")
    assert blocked.value.details["findings"][0]["rule"]
    assert blocked.value.retryable
    with pytest.raises(ValidationFailed, match="timeout"):
        await client.execute_code(VmExecuteRequest(language="python", code="1", timeout_seconds=1e6))
    vm = (await client.provision_vm(AGENT)).id
    await client.execute_bash(AGENT, "echo 1", vm, idempotency_key="i1")
    with pytest.raises(Conflict):
        await client.execute_bash(AGENT, "echo 2", vm, idempotency_key="i1")


async def test_servers_that_are_none() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        async with VmExecutionClient(VmExecutionConfig(api_base_url=url)) as client:
            with pytest.raises(VmConnectionError) as error:
                await client.health_check()
    assert error.value.retryable
    assert url in error.value.message
    for wrong in ("localhost:8080", "ftp://x", "http://", "nonsense"):
        with pytest.raises(ConfigError, match="address"):
            VmExecutionClient(VmExecutionConfig(api_base_url=wrong))

    async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(page, "127.0.0.1", 0) as other:
        url = f"http://127.0.0.1:{other.sockets[0].getsockname()[1]}"
        async with VmExecutionClient(VmExecutionConfig(api_base_url=url)) as client:
            with pytest.raises(ApiError, match="no Health"):
                await client.health_check()


async def test_only_what_never_ran_is_tried_again() -> None:
    """A small server that breaks connections and refuses, and counts."""
    seen: list[str] = []
    error = b'{"error": {"code": "no_capacity", "message": "full", "remediation": "wait", "retryable": true}}'

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split()[1]
        seen.append(path)
        if path == "/health" and seen.count(path) < 3:
            writer.write(b"HTTP/1.1 503 x\r\nRetry-After: 0\r\nContent-Length: %d\r\n\r\n%s" % (len(error), error))
        elif path == "/health":
            body = b'{"status": "ok", "version": "1", "uptime_seconds": 1}'
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as other:
        url = f"http://127.0.0.1:{other.sockets[0].getsockname()[1]}"
        async with VmExecutionClient(VmExecutionConfig(api_base_url=url)) as client:
            assert (await client.health_check()).status == "ok"
            with pytest.raises(VmConnectionError) as broken:
                await client.execute_python(AGENT, "1")
    assert seen.count("/health") == 3
    assert seen.count("/api/llm/execute") == 1
    assert not broken.value.retryable
    assert "history" in broken.value.remediation


class Refuse(Hook):
    """Nothing with `secret`; and code is signed."""

    async def pre_tool(self, context: PreToolContext) -> HookDecision:
        if "secret" in context.code:
            return Block(reason="it says secret")
        return Modify(value=context.code + "\nprint('signed')") if context.language == "python" else Allow()


class Remember(Hook):
    """What it was shown of outcomes."""

    def __init__(self) -> None:
        self.seen: list[PostToolContext] = []

    async def post_tool(self, context: PostToolContext) -> HookDecision:
        self.seen.append(context)
        return Allow()


async def test_a_hook_of_this_side_sees_what_one_of_the_engine_sees(served: Served) -> None:
    here, there = Remember(), Remember()
    code = "import sys\nprint('out')\nprint('err', file=sys.stderr)\n[1][2]"
    async with VmExecutionClient(config(served), hook_manager=HookManager([here])) as client:
        await client.execute_python(AGENT, code)
    async with Engine(hooks=[there]) as engine:
        sandbox = await AsyncSandbox.create("minimal", engine=engine)
        await sandbox.run_code(code)
        await sandbox.kill()
    shown = [hook.seen[0].parts.model_dump() for hook in (here, there)]
    assert shown[0] == shown[1]
    assert shown[0]["error"]["name"] == "IndexError"
    assert "line 4" in shown[0]["error"]["traceback"]


async def test_hooks_of_this_side(served: Served) -> None:
    hooks = HookManager([Refuse(), OutputSanitizerHook()])
    async with VmExecutionClient(config(served), hook_manager=hooks) as client:
        with pytest.raises(PolicyBlocked, match="it says secret"):
            await client.execute_python(AGENT, "print('secret')")
        with pytest.raises(PolicyBlocked, match="rm"):
            await client.execute_bash(AGENT, "rm -rf /")
        seen: list[str] = []
        run = await client.execute_python(AGENT, "print('ada@example.com')", on_stdout=seen.append)
        assert run.stdout == "[REDACTED:email]\nsigned\n"
        assert "".join(seen) == run.stdout
        assert (await client.query_history(run.vm_id)).total == 1


async def test_a_wrong_token_is_told(tmp_path: Path) -> None:
    server = Served()
    try:
        token = server.token("x")
        server.start()
        wanted = VmExecutionConfig(api_base_url=server.url)
        async with VmExecutionClient(wanted, auth_token="wr" + "ong") as client:
            with pytest.raises(Unauthorized, match="wrong, expired or revoked"):
                await client.get_vm_pool(AGENT)
        async with VmExecutionClient(wanted, auth_token=token) as client:
            assert (await client.get_vm_pool(AGENT)).available_vms == []
        with pytest.raises(Unauthorized):
            Sandbox.create("minimal", base_url=server.url)
        with Sandbox.create("minimal", base_url=server.url, token=token) as sandbox:
            assert sandbox.run_code("6 * 7").text == "42"
        assert token not in repr(client)
    finally:
        server.finish()


def test_the_synchronous_twin(served: Served) -> None:
    seen: list[str] = []
    with VmExecutionClientSync(config(served)) as client:
        assert client.health_check().status == "ok"
        vm = client.wait_for_vm_ready(client.provision_vm(AGENT).id).id
        assert client.execute_python(AGENT, "x = 1; print(x)", vm, on_stdout=seen.append).stdout == "1\n"
        assert seen == ["1\n"]
        snapshot = client.create_snapshot(vm)
        assert client.get_last_successful_snapshot(vm) == snapshot
        assert client.execute_bash(AGENT, "false", vm).exit_code == 1
        assert client.query_failures(vm).total == 1
        client.rollback_to_snapshot(vm, snapshot)
        client.rollback_to_last_success(vm)
        assert client.execute_code(VmExecuteRequest(language="python", code="x", vm_id=vm)).results[0].text == "1"
        assert client.parse_and_execute(AGENT, "nothing").code_blocks == []
        with pytest.raises(PolicyBlocked):
            client.execute_bash(AGENT, "rm -rf /")
        assert not client.cancel(idempotency_key="none")
        client.kill_vm(vm)
    client.close()


def test_the_twin_has_every_method() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert public(VmExecutionClientSync) - {"close"} == public(VmExecutionClient) - {"aclose"}


# --- Sandbox on a server ----------------------------------------------------------------------------------------------


async def test_a_sandbox_of_a_server_is_found_again(served: Served) -> None:
    sandbox = await AsyncSandbox.create("minimal", base_url=served.url, agent_id=AGENT, metadata={"a": "b"})
    await sandbox.run_code("x = 1")
    again = await AsyncSandbox.connect(sandbox.sandbox_id, base_url=served.url)
    assert (await again.run_code("x")).text == "1"
    assert again.backend == sandbox.backend == "gvisor"
    info = await again.get_info()
    assert (info.agent_id, info.metadata) == (AGENT, {"a": "b"})
    await sandbox.kill()
    assert not await again.is_running()
    await again.kill()
    with pytest.raises(SessionNotFound):
        await AsyncSandbox.connect(sandbox.sandbox_id, base_url=served.url)
    with pytest.raises(ValidationFailed, match="hooks"):
        await AsyncSandbox.create(base_url=served.url, hooks=[Refuse()])


# --- DirectSessionAdapter ---------------------------------------------------------------------------------------------


async def test_a_session_with_snapshot_and_rollback(served: Served, tmp_path: Path) -> None:
    async with DirectSessionAdapter(tmp_path, served.url) as adapter:
        session = await adapter.get_or_create_session("build", AGENT, "minimal")
        assert await adapter.get_or_create_session("build", AGENT, "minimal") == session
        assert await adapter.execute_command_direct(session, "cd /tmp; X=1; echo one") == ("one\n", 0)
        assert await adapter.execute_command_direct(session, "echo $PWD $X; echo bad >&2; exit 3") == (
            "/tmp 1\nbad\n", 3,
        )  # fmt: skip
        snapshot = await adapter.create_snapshot_direct(session, "s")
        await adapter.execute_command_direct(session, "echo > f")
        assert (await adapter.rollback_direct(session, snapshot)).snapshot_id == snapshot
        assert (await adapter.execute_command_direct(session, "ls f"))[1] != 0
        info = await adapter.get_session_info(session)
        assert (info.name, info.agent_id, info.snapshots) == ("build", AGENT, 1)
        connection = await adapter.get_connection_info(session)
        assert connection["websocket_url"] == f"{served.url.replace('http', 'ws')}/ws/{info.vm_id}"
    async with DirectSessionAdapter(tmp_path, served.url) as later:
        assert [one.name for one in await later.list_sessions()] == ["build"]
        await later.close_session("build")
        await later.close_session("build")
        assert await later.list_sessions() == []
        with pytest.raises(SessionNotFound):
            await later.execute_command_direct("build", "ls")
    (tmp_path / "sessions.json").write_text("{")
    with pytest.raises(ConfigError, match=r"sessions\.json"):
        DirectSessionAdapter(tmp_path, served.url)


# --- FcctlBridge ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["http", "direct"])
async def test_the_bridge_in_both_modes(mode: Any, served: Served, settings: Settings) -> None:
    policy = HistoryConfig(integration_mode=mode, snapshot_on_execution=True, auto_rollback_on_failure=True)
    async with Engine(settings) as engine, VmExecutionClient(config(served)) as client:
        sandbox = None
        if mode == "direct":
            sandbox = await engine.create_sandbox("minimal", agent_id=AGENT)
            vm = sandbox.id
        else:
            vm = (await client.provision_vm(AGENT)).id

        async def run(code: str) -> tuple[VmExecuteRequest, VmExecuteResponse]:
            request = VmExecuteRequest(agent_id=AGENT, language="python", code=code, vm_id=vm)
            if sandbox is None:
                return request, await client.execute_code(request)
            return request, VmExecuteResponse.of(await engine.execute(ExecuteRequest(sandbox, "python", code)))

        bridge = FcctlBridge(policy, served.url, engine=engine if mode == "direct" else None)
        async with bridge:
            assert await bridge.get_last_successful_snapshot(vm, AGENT) is None
            request, response = await run("x = 1")
            first = await bridge.track_execution(vm, AGENT, request, response)
            assert first is not None
            assert await bridge.get_last_successful_snapshot(vm, AGENT) == first
            assert await bridge.auto_rollback_on_failure(vm, AGENT, response) is None
            request, response = await run("x = 2; 1 / 0")
            assert await bridge.track_execution(vm, AGENT, request, response) not in (None, first)
            back = await bridge.auto_rollback_on_failure(vm, AGENT, response)
            assert back is not None
            assert back.snapshot_id == first
            assert (await run("x"))[1].results[0].text == "1"
            found = await bridge.query_history(vm, AGENT, failures_only=True)
            assert [entry.command for entry in found.history] == ["x = 2; 1 / 0"]
            assert (await bridge.rollback_to_snapshot(vm, first, AGENT)).snapshot_id == first
            with pytest.raises(SnapshotNotFound):
                await bridge.rollback_to_snapshot(vm, "sn-nothing")
        off = FcctlBridge(HistoryConfig(enabled=False, integration_mode=mode), served.url, engine=engine)
        async with off:
            assert await off.track_execution(vm, AGENT, request, response) is None
