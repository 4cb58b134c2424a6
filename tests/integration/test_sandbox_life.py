"""Making, using and ending sandboxes: sync and async, side by side, cancelled, timed out."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from emberbox import AsyncSandbox, Engine, MachineLimits, Sandbox, Settings
from emberbox.engine import ExecuteRequest
from emberbox.errors import ConfigError, ExecutionFailed, SessionNotFound, ValidationFailed, VmNotAvailable
from emberbox.hooks import Allow, Hook, HookDecision, Modify, PostToolContext, PreToolContext
from emberbox.models import CommandHistoryEntry, Execution, TerminationReason

MINIMAL = "minimal"


def test_the_example_of_the_readme(nothing_left: None) -> None:
    with Sandbox.create() as sb:
        sb.run_code("x = 41")
        assert sb.run_code("x + 1").text == "42"


def test_sandboxes_are_apart(nothing_left: None) -> None:
    with Sandbox.create(MINIMAL) as one, Sandbox.create(MINIMAL) as two:
        one.run_code("x = 1")
        one.files.write("f", "1")
        assert two.run_code("x").error is not None
        assert not two.files.exists("f")
        assert one.sandbox_id != two.sandbox_id


async def test_many_sandboxes_at_once(nothing_left: None) -> None:
    async def square(n: int) -> str | None:
        async with await AsyncSandbox.create(MINIMAL) as sandbox:
            await sandbox.run_code(f"x = {n}")
            return (await sandbox.run_code("x * x")).text

    assert await asyncio.gather(*(square(n) for n in range(6))) == [str(n * n) for n in range(6)]


async def test_executions_side_by_side_in_one_sandbox(nothing_left: None) -> None:
    """Two contexts that wait for each other: only possible if both run at the same time."""
    async with await AsyncSandbox.create(MINIMAL) as sandbox:
        wait = (
            "import os, time\nopen({mine!r}, 'w').close()\nwhile not os.path.exists({other!r}): time.sleep(0.01)\n'met'"
        )
        contexts = [await sandbox.create_code_context() for _ in range(2)]
        runs = await asyncio.gather(
            sandbox.run_code(wait.format(mine="a", other="b"), context=contexts[0], timeout=30),
            sandbox.run_code(wait.format(mine="b", other="a"), context=contexts[1], timeout=30),
        )
    assert [run.text for run in runs] == ["'met'", "'met'"]


async def test_a_busy_context_is_an_error_not_a_wait(nothing_left: None) -> None:
    async with await AsyncSandbox.create(MINIMAL) as sandbox:
        started = asyncio.Event()
        code = "print('up', flush=True)\nimport time; time.sleep(50)"
        first = asyncio.create_task(sandbox.run_code(code, on_stdout=lambda _: started.set()))
        await started.wait()
        with pytest.raises(ExecutionFailed, match="running something already") as error:
            await sandbox.run_code("1")
        assert error.value.details["kind"] == "busy"
        await sandbox.interrupt()
        assert (await first).termination_reason is TerminationReason.INTERRUPTED


async def test_cancelling_a_call_cancels_the_execution(nothing_left: None) -> None:
    async with await AsyncSandbox.create(MINIMAL) as sandbox:
        started = asyncio.Event()
        code = "print('up', flush=True)\nwhile True: pass"
        call = asyncio.create_task(sandbox.run_code(code, on_stdout=lambda _: started.set()))
        await started.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        run = await _run_when_idle(sandbox)
        assert run.text == "'idle'"


async def _run_when_idle(sandbox: AsyncSandbox) -> Execution:
    """The cancelled code is killed a moment after the call ended; until then its context is busy."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await sandbox.run_code("'idle'")
            except ExecutionFailed as exc:
                if exc.details["kind"] != "busy":
                    raise
                await asyncio.sleep(0)


async def test_a_failing_listener_ends_the_execution(nothing_left: None) -> None:
    def listener(text: str) -> None:
        raise LookupError(f"cannot take {text!r}")

    async with await AsyncSandbox.create(MINIMAL) as sandbox:
        with pytest.raises(LookupError, match="cannot take"):
            await sandbox.run_code("print('x', flush=True)\nwhile True: pass", on_stdout=listener)
        assert (await _run_when_idle(sandbox)).text == "'idle'"


async def test_a_slow_async_listener_gets_everything(nothing_left: None) -> None:
    seen: list[str] = []

    async def listener(text: str) -> None:
        await asyncio.sleep(0.01)
        seen.append(text)

    async with await AsyncSandbox.create(MINIMAL) as sandbox:
        await sandbox.run_code("for n in range(200): print(n, flush=True)", on_stdout=listener)
    assert "".join(seen).split() == [str(n) for n in range(200)]


async def test_the_time_of_listeners_does_not_count(nothing_left: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of one that waits, nor of one that keeps the whole loop busy while the end of the code arrives."""
    monkeypatch.setattr("emberbox.sandbox.runner._GRACE_SECONDS", 0.5)

    async def waits(text: str) -> None:
        await asyncio.sleep(2)

    def blocks(text: str) -> None:
        time.sleep(2)

    async with await AsyncSandbox.create(MINIMAL) as sandbox:
        for listener in (waits, blocks):
            code = "print('x', flush=True)\nimport time; time.sleep(0.1)"
            run = await sandbox.run_code(code, timeout=1, on_stdout=listener)
            assert run.succeeded
            assert await sandbox.is_running()


async def test_cancelling_the_start_of_a_command_kills_it(nothing_left: None) -> None:
    async with await AsyncSandbox.create(MINIMAL) as sandbox:
        for steps in range(1, 6):
            start = asyncio.create_task(sandbox.commands.run("sleep 77", background=True))
            for _ in range(steps):
                await asyncio.sleep(0)
            start.cancel()
            with pytest.raises(asyncio.CancelledError):
                await start
        async with asyncio.timeout(20):
            while await sandbox.commands.list():
                pass


def test_a_loop_that_was_closed_does_not_keep_its_sandboxes(
    nothing_left: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBERBOX_VM_EXECUTION__HISTORY__ENABLED", "false")  # its connection goes with its loop only
    asyncio.run(AsyncSandbox.create(MINIMAL))
    with Sandbox.create(MINIMAL) as sandbox:
        assert sandbox.run_code("1").text == "1"


def test_a_forked_process_is_told_that_the_sandbox_is_not_its_own(nothing_left: None) -> None:
    with Sandbox.create(MINIMAL) as sandbox:
        pid = os.fork()
        if pid == 0:
            try:
                sandbox.run_code("1")
            except VmNotAvailable as error:
                os._exit(42 if "forked" in error.message else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42


def test_a_sandbox_ends_after_its_time(nothing_left: None) -> None:
    with Sandbox.create(MINIMAL, timeout=300) as sandbox:
        sandbox.set_timeout(0.2)
        run = sandbox.run_code("import time; time.sleep(60)")
        assert run.termination_reason is TerminationReason.TIMEOUT
        assert not sandbox.is_running()
        with pytest.raises(VmNotAvailable, match="own time"):
            sandbox.run_code("1")


def test_set_timeout_can_be_taken_back(nothing_left: None) -> None:
    with Sandbox.create(MINIMAL, timeout=3) as sandbox:
        assert sandbox.get_info().end_at is not None
        sandbox.set_timeout(None)
        assert sandbox.get_info().end_at is None
        with pytest.raises(ValidationFailed, match="positive"):
            sandbox.set_timeout(0)


def test_info_and_metrics(nothing_left: None) -> None:
    with Sandbox.create(MINIMAL, metadata={"user": "ann"}, limits=MachineLimits(memory_mb=300)) as sandbox:
        info = sandbox.get_info()
        assert (info.template, info.backend, info.state, info.metadata) == (
            "minimal",
            "gvisor",
            "running",
            {"user": "ann"},
        )
        assert info.limits.memory_mb == 300
        sandbox.files.write("f", b"x" * (5 << 20))
        metrics = sandbox.get_metrics()
        assert metrics.memory_limit_bytes == 300 << 20
        assert metrics.memory_bytes is not None
        assert 5 << 20 <= metrics.disk_used_bytes < 6 << 20
        assert metrics.processes >= 0


def test_kill_twice_and_use_after_kill(nothing_left: None) -> None:
    sandbox = Sandbox.create(MINIMAL)
    sandbox.kill()
    sandbox.kill()
    assert not sandbox.is_running()
    for work in (lambda: sandbox.run_code("1"), sandbox.get_info, lambda: sandbox.files.read("x")):
        with pytest.raises(VmNotAvailable, match="was killed"):
            work()


def test_what_cannot_be_an_environment_is_refused_before_a_machine_is_asked(nothing_left: None) -> None:
    with Sandbox.create(MINIMAL) as sandbox:
        for envs in ({"A=B": "x"}, {"": "x"}, {"A": "\0"}, {"A": "x" * 200_000}):
            for ask in (
                lambda envs: Sandbox.create(MINIMAL, envs=envs),
                lambda envs: sandbox.run_code("1", envs=envs),
                lambda envs: sandbox.commands.run("true", envs=envs),
                lambda envs: sandbox.create_code_context(envs=envs),
            ):
                with pytest.raises(ValidationFailed, match="cannot be an environment variable"):
                    ask(envs)
        assert sandbox.run_code("import os; os.environ['A']", envs={"A": "x\ny"}).text == r"'x\ny'"


def test_environment_of_the_whole_sandbox(nothing_left: None) -> None:
    with Sandbox.create(MINIMAL, envs={"TEAM": "red"}) as sandbox:
        assert sandbox.run_code("import os; os.environ['TEAM']").text == "'red'"
        assert sandbox.commands.run("echo $TEAM").stdout == "red\n"


def test_unknown_contexts_templates_and_languages(nothing_left: None) -> None:
    with pytest.raises(ConfigError, match="no template 'nope'"):
        Sandbox.create("nope")
    with Sandbox.create(MINIMAL) as sandbox:
        with pytest.raises(SessionNotFound, match="no-context"):
            sandbox.run_code("1", context="no-context")
        with pytest.raises(ValidationFailed, match="cobol"):
            sandbox.run_code("1", "cobol")
        with pytest.raises(ValidationFailed, match="has no javascript"):
            sandbox.run_code("1", "javascript")
        context = sandbox.create_code_context("python")
        with pytest.raises(ValidationFailed, match="is for python"):
            sandbox.run_code("1", "bash", context=context)


class Log(Hook):
    """A hook and a recorder that write down when they are called."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    async def pre_tool(self, context: PreToolContext) -> HookDecision:
        self.steps.append("pre_tool")
        return Modify(value=context.code.replace("1", "2"))

    async def post_tool(self, context: PostToolContext) -> HookDecision:
        self.steps.append(f"post_tool {context.parts.results[0].text}")
        return Allow()

    async def record(self, entry: CommandHistoryEntry) -> None:
        self.steps.append(f"{entry.state} {entry.command}")


async def test_steps_of_an_execution_in_their_order(nothing_left: None, settings: Settings) -> None:
    log = Log()
    async with Engine(settings, hooks=[log], recorders=[log]) as engine:
        sandbox = await engine.create_sandbox(MINIMAL)
        execution = await engine.execute(ExecuteRequest(sandbox, "python", "1"))
    assert execution.text == "2"
    assert log.steps == ["pre_tool", "started 2", "post_tool 2", "finished 2"]


@pytest.mark.parametrize("durable", [False, True])
async def test_an_engine_that_is_closed_while_it_opens_leaves_nothing(
    nothing_left: None, settings: Settings, *, durable: bool
) -> None:
    engine = Engine(settings, durable=durable)
    opening = asyncio.create_task(engine.list_sandboxes())
    await asyncio.sleep(0)
    assert engine._opening is not None
    await engine.close()
    assert (engine._sandboxes, engine._factory, engine._idle) == (None, None, None)
    with pytest.raises(VmNotAvailable, match="closed"):
        await opening
    async with Engine(settings, durable=durable) as other:
        assert await other.list_sandboxes() == []


async def test_who_is_cancelled_while_the_engine_opens_does_not_make_another_open_it_twice(
    nothing_left: None, settings: Settings
) -> None:
    async with Engine(settings) as engine:
        first = asyncio.create_task(engine.list_sandboxes())
        await asyncio.sleep(0)
        opening = engine._opening
        assert opening is not None
        first.cancel()
        assert await engine.list_sandboxes() == []
        assert engine._opening is opening
        assert first.cancelled()


async def test_a_closed_engine_has_killed_its_sandboxes(nothing_left: None, settings: Settings) -> None:
    engine = Engine(settings)
    sandbox = await engine.create_sandbox(MINIMAL)
    assert [s.id for s in await engine.list_sandboxes()] == [sandbox.id]
    await engine.close()
    assert sandbox.state.value == "killed"
    with pytest.raises(VmNotAvailable):
        sandbox.open_channel()


async def test_cancelling_a_start_leaves_nothing(nothing_left: None) -> None:
    async with await AsyncSandbox.create(MINIMAL):  # keeps the engine, so that what is left would stay
        for steps in (0, 1, 3, 10, 30, 100, 300):
            start = asyncio.create_task(AsyncSandbox.create(MINIMAL))
            for _ in range(steps):
                await asyncio.sleep(0)
            start.cancel()
            with pytest.raises(asyncio.CancelledError):
                await start


async def test_after_a_cancelled_execution_the_next_one_runs_at_once(nothing_left: None) -> None:
    """No `busy`: the next one waits for the end of the one that was cancelled."""
    async with await AsyncSandbox.create(MINIMAL) as sandbox:
        for _ in range(5):
            running = asyncio.Event()
            code = "print('on', flush=True)\nwhile True: pass"
            run = asyncio.create_task(sandbox.run_code(code, on_stdout=lambda _, on=running: on.set()))  # type: ignore[misc]
            async with asyncio.timeout(30):
                await running.wait()
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
            assert (await sandbox.run_code("6 * 7")).text == "42"
