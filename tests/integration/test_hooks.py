"""Hooks and policy around real executions: what runs, what is seen, what is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from emberbox import AsyncSandbox, Engine, Sandbox, Settings, load_settings
from emberbox.engine import ExecuteRequest
from emberbox.errors import ConfigError, PolicyBlocked, ValidationFailed
from emberbox.hooks import (
    Allow,
    ApprovalDesk,
    ApprovalRequest,
    ApprovalResponse,
    AskUser,
    Block,
    Hook,
    HookDecision,
    HookManager,
    Modify,
    OutputFilter,
    OutputSanitizerHook,
    PostLlmContext,
    PostToolContext,
    PreLlmContext,
    PreToolContext,
)
from emberbox.models import CommandHistoryEntry, Execution, HistoryQueryRequest, PolicyConfig, Result
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sandbox.listeners import Listeners, RunOptions

MINIMAL = "minimal"
KEY = "AKIAIOSFODNN7EXAMPLF"
PRINTS_KEY = "import sys\nkey = 'AKIAIOSF' + 'ODNN7EXAMPLF'\n"

pytestmark = pytest.mark.usefixtures("nothing_left")


class Box:
    """One sandbox of one engine with these hooks."""

    def __init__(self, engine: Engine, session: SandboxInstance) -> None:
        self.engine, self.session = engine, session

    async def run(self, code: str, language: str = "python", **fields: Any) -> Execution:
        listeners = fields.pop("listeners", None)
        return await self.engine.execute(ExecuteRequest(self.session, language, code, **fields), listeners)

    async def history(self) -> list[CommandHistoryEntry]:
        """Newest first."""
        return (await self.engine.history.query(HistoryQueryRequest())).history


class Boxes:
    """Makes boxes, and closes their engines."""

    def __init__(self) -> None:
        self._engines: list[Engine] = []

    async def make(self, *hooks: Hook, settings: Settings | None = None, template: str = MINIMAL, **fields: Any) -> Box:
        engine = Engine(settings or load_settings(), hooks=hooks, **fields)
        self._engines.append(engine)
        return Box(engine, await engine.create_sandbox(template))

    async def close(self) -> None:
        for engine in self._engines:
            await engine.close()


@pytest.fixture
async def boxes(nothing_left: None) -> AsyncIterator[Boxes]:
    made = Boxes()
    yield made
    await made.close()


# --- before ---------------------------------------------------------------------------------------------------------


class Refuses(Hook):
    async def pre_tool(self, context: PreToolContext) -> HookDecision:
        return Block(reason="not on Fridays") if "touch" in context.code else Allow()


class Doubles(Hook):
    def pre_tool(self, context: PreToolContext) -> HookDecision:
        return Modify(value=context.code.replace("21", "42"), reason="twice as much")


async def test_what_a_hook_blocks_does_not_run_and_says_whose_decision_it_was(boxes: Boxes) -> None:
    box = await boxes.make(Refuses())
    with pytest.raises(PolicyBlocked, match="bash code refused by hook refuses: not on Fridays") as caught:
        await box.run("touch here", "bash")
    assert caught.value.details["hook"] == "refuses"
    assert (await box.run("ls here", "bash")).exit_code != 0
    refused = (await box.history())[1]
    assert (refused.state, refused.blocked_by, refused.command) == ("refused", "hook refuses", "touch here")
    assert [(record.hook, record.decision) for record in refused.decisions] == [("refuses", "block")]


async def test_what_hooks_change_is_what_runs_and_what_is_recorded(boxes: Boxes) -> None:
    box = await boxes.make(Doubles(), Refuses())
    run = await box.run("21")
    assert (run.text, run.notes) == ("42", ["doubles changed the code: twice as much"])
    (entry,) = await box.history()
    assert entry.command == "42"
    assert [(record.hook, record.decision, record.reason) for record in entry.decisions] == [
        ("doubles", "modify", "twice as much"),
        ("refuses", "allow", ""),
    ]
    assert (await box.engine.history.verify()).intact


async def test_the_policy_looks_at_what_hooks_wrote(boxes: Boxes) -> None:
    class Sneaks(Hook):
        async def pre_tool(self, context: PreToolContext) -> HookDecision:
            return Modify(value="import os\nos.system('true')")

    box = await boxes.make(Sneaks())
    with pytest.raises(PolicyBlocked, match=r"python\.os-system"):
        await box.run("1")


async def test_hooks_know_who_asks_and_where(boxes: Boxes) -> None:
    seen: list[PreToolContext] = []

    class Looks(Hook):
        async def pre_tool(self, context: PreToolContext) -> HookDecision:
            seen.append(context)
            return Allow()

    box = await boxes.make(Looks())
    await box.run("1", "py", agent_id="bot", role="analyst", metadata={"ticket": 7})
    (context,) = seen
    (entry,) = await box.history()
    assert (context.language, context.agent_id, context.role, context.template) == ("python", "bot", "analyst", MINIMAL)
    assert (context.vm_id, context.execution_id) == (box.session.id, entry.execution_id)
    assert context.metadata == {"ticket": 7}


async def test_rules_are_switched_by_agent_and_role(boxes: Boxes) -> None:
    settings = load_settings()
    settings.vm_execution.policy = PolicyConfig.model_validate(
        {"agents": {"ops": {"disabled": ["python.os-system"]}}, "roles": {"admin": {"disabled": ["python.eval"]}}}
    )
    box = await boxes.make(settings=settings)
    assert (await box.run("import os\nos.system('true')", agent_id="ops")).text == "0"
    assert (await box.run("eval('6 * 7')", role="admin")).text == "42"
    with pytest.raises(PolicyBlocked):
        await box.run("eval('1')", agent_id="ops")


# --- people ---------------------------------------------------------------------------------------------------------


def asking(*rules: str) -> Settings:
    settings = load_settings()
    settings.vm_execution.policy = PolicyConfig(ask=list(rules))
    return settings


async def test_a_rule_may_leave_it_to_a_person(boxes: Boxes) -> None:
    asked: list[ApprovalRequest] = []
    verdicts = iter([True, False])

    def approver(request: ApprovalRequest) -> ApprovalResponse:
        asked.append(request)
        return ApprovalResponse(approval_id=request.approval_id, approve=next(verdicts), by="ada")

    box = await boxes.make(settings=asking("python.eval"), approver=approver)
    assert (await box.run("eval('6 * 7')")).text == "42"
    with pytest.raises(PolicyBlocked, match=r"python\.eval.*ada refused it"):
        await box.run("eval('1')")
    assert asked[0].code == "eval('6 * 7')"
    assert "code:1:1: evaluates text as code" in asked[0].prompt
    refused, passed = await box.history()
    assert [(record.hook, record.approved, record.approved_by) for record in passed.decisions] == [
        ("policy", True, "ada")
    ]
    assert (refused.state, refused.blocked_by, refused.decisions[0].approved) == ("refused", "python.eval", False)


async def test_without_anybody_to_ask_it_is_refused(boxes: Boxes) -> None:
    box = await boxes.make(settings=asking("python.eval"))
    with pytest.raises(PolicyBlocked, match="nobody approved it"):
        await box.run("eval('1')")


async def test_what_a_person_writes_instead_runs_unless_it_is_forbidden(boxes: Boxes) -> None:
    edits = iter(["'better'", "import os\nos.system('true')"])

    async def approver(request: ApprovalRequest) -> ApprovalResponse:
        return ApprovalResponse(approval_id=request.approval_id, approve=True, edited_code=next(edits))

    box = await boxes.make(settings=asking("python.eval"), approver=approver)
    assert (await box.run("eval('1')")).text == "'better'"
    with pytest.raises(PolicyBlocked, match=r"python\.os-system"):
        await box.run("eval('1')")
    entry = (await box.history())[1]
    assert (entry.command, entry.decisions[0].edited) == ("'better'", True)


async def test_a_caller_who_leaves_takes_the_question_along(boxes: Boxes) -> None:
    asked = asyncio.Event()
    desk = ApprovalDesk(on_request=lambda _: asked.set())
    box = await boxes.make(settings=asking("python.eval"), approver=desk)
    running = asyncio.create_task(box.run("eval('1')"))
    await asked.wait()
    assert len(desk.pending()) == 1
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert desk.pending() == []
    assert (await box.run("1 + 1")).text == "2"


async def test_an_answer_that_asks_is_not_refused_beforehand(nothing_left: None) -> None:
    text = "Run this:\n\n```python\nprint(eval('6 * 7'))\n```\n"
    async with Engine(asking("python.eval"), approver=lambda _: True) as engine:
        response = await engine.parse_execute(text, template=MINIMAL)
        assert [run.stdout for run in response.execution_results] == ["42\n"]
    async with Engine(asking("python.eval")) as engine:
        response = await engine.parse_execute(text, template=MINIMAL)
        assert [error.code for error in response.errors] == ["blocked_by_policy"]


# --- what is seen ---------------------------------------------------------------------------------------------------


class Heard:
    """Collects what streams."""

    def __init__(self) -> None:
        self.stdout, self.stderr, self.results = list[str](), list[str](), list[Result]()
        self.listeners = Listeners(self.stdout.append, self.stderr.append, self.results.append)


async def test_secrets_are_redacted_in_the_stream_the_answer_and_the_history(boxes: Boxes) -> None:
    box, heard = await boxes.make(OutputSanitizerHook()), Heard()
    code = (
        PRINTS_KEY + "for part in ('the key is ', key[:9], key[9:], ', see\\n', 'clean\\n'):\n"
        "    sys.stdout.write(part); sys.stdout.flush()\n"
        "print('mail ada@example.com', file=sys.stderr)\n"
        "display({'text/html': f'<b>{key}</b>', 'text/plain': key})\n"
        "raise ValueError(key)\n"
    )
    run = await box.run(code, listeners=heard.listeners)
    shown = "the key is [REDACTED:aws-key], see\nclean\n"
    assert "".join(heard.stdout) == run.stdout == shown
    assert "".join(heard.stderr) == run.stderr == "mail [REDACTED:email]\n"
    assert heard.results[0].html == run.results[0].html == "<b>[REDACTED:aws-key]</b>"
    assert run.error is not None
    assert run.error.value == "[REDACTED:aws-key]"
    (entry,) = await box.history()
    assert KEY not in run.model_dump_json() + entry.model_dump_json(exclude={"command"})
    assert run.notes == ["output-sanitizer changed the output: redacted 5 aws-key, 1 email"]


async def test_a_prompt_without_a_line_end_is_shown_while_the_code_waits(boxes: Boxes) -> None:
    box, seen = await boxes.make(OutputSanitizerHook()), asyncio.Event()

    def on_stdout(text: str) -> None:
        if "Working" in text:
            seen.set()

    code = (
        "import os, time\nprint('Working ... ', end='', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.01)"
    )
    running = asyncio.create_task(box.run(code, listeners=Listeners(on_stdout)))
    await asyncio.wait_for(seen.wait(), 30)  # it could not be seen before the end, or never
    await box.session.files.write("go", b"")
    assert (await running).stdout == "Working ... "


async def test_secrets_may_block_the_answer(boxes: Boxes) -> None:
    box = await boxes.make(OutputSanitizerHook(mode="block"))
    assert (await box.run("print('clean')")).stdout == "clean\n"
    with pytest.raises(PolicyBlocked, match="The output was withheld by hook output-sanitizer") as caught:
        await box.run(PRINTS_KEY + "print(key)")
    assert KEY not in caught.value.message
    entry = (await box.history())[0]
    assert (entry.state, entry.stdout, entry.blocked_by) == ("finished", "(withheld)", "hook output-sanitizer")


class BrokenFilter(Hook):
    def output_filter(self, context: PreToolContext) -> OutputFilter:
        raise OSError("no rules")


async def test_a_filter_that_fails_lets_nothing_through(boxes: Boxes) -> None:
    box, heard = await boxes.make(BrokenFilter()), Heard()
    with pytest.raises(PolicyBlocked, match="the filter of hook broken-filter raised OSError: no rules"):
        await box.run("print('secret'); 1", listeners=heard.listeners)
    assert (heard.stdout, heard.results) == ([], [])
    assert (await box.history())[0].stdout == "(withheld)"


async def test_a_hook_may_say_what_the_caller_sees(boxes: Boxes) -> None:
    class Counts(Hook):
        async def post_tool(self, context: PostToolContext) -> HookDecision:
            return Modify(value=f"{len(context.output)} characters, exit {context.exit_code}", reason="counted")

    run = await (await boxes.make(Counts())).run("import sys\nprint('ab')\nsys.exit(3)")
    assert (run.stdout, run.stderr, run.results, run.exit_code) == ("3 characters, exit 3", "", [], 3)
    assert run.notes == ["counts changed the output: counted"]


async def test_a_listener_that_is_cancelled_leaves_no_timer(boxes: Boxes) -> None:
    box, begun = await boxes.make(OutputSanitizerHook()), asyncio.Event()
    code = "import time\nprint('up\\nand', end='', flush=True)\ntime.sleep(50)"
    running = asyncio.create_task(box.run(code, listeners=Listeners(lambda _: begun.set())))
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert [task for task in others if "_let_go" in repr(task)] == []


# --- settings -------------------------------------------------------------------------------------------------------


async def test_hooks_come_from_the_settings(boxes: Boxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "house_rules.py").write_text(
        "from emberbox.hooks import Block, Hook\n"
        "class NoLoops(Hook):\n"
        "    def pre_tool(self, context):\n"
        "        return Block(reason='no loops') if 'while' in context.code else None or __import__('emberbox.hooks')"
        ".hooks.Allow()\n"
    )
    (tmp_path / "emberbox.toml").write_text(
        '[hooks]\nuse = ["output-sanitizer", { name = "house_rules:NoLoops", order = -1, templates = ["mini*"] }]\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("EMBERBOX_CONFIG", str(tmp_path / "emberbox.toml"))
    box = await boxes.make(Doubles())
    assert [hook.name for hook in box.engine.hooks.hooks] == ["no-loops", "output-sanitizer", "doubles"]
    with pytest.raises(PolicyBlocked, match="no loops"):
        await box.run("while True: pass")
    assert (await box.run("print('a@example.com', 21)")).stdout == "[REDACTED:email] 42\n"


async def test_a_hook_that_cannot_be_loaded_is_an_error_at_the_start(settings: Settings) -> None:
    settings.hooks.use = [{"name": "nowhere"}]  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="there is no hook 'nowhere'"):
        Engine(Settings.model_validate(settings.model_dump()))


async def test_a_manager_of_ones_own_is_used_as_it_is(nothing_left: None, settings: Settings) -> None:
    manager = HookManager()
    async with Engine(settings, hooks=manager) as engine:
        sandbox = await AsyncSandbox.create(MINIMAL, engine=engine)
        assert (await sandbox.run_code("21")).text == "21"
        manager.add_hook(Doubles())
        assert (await sandbox.run_code("21")).text == "42"


# --- models ---------------------------------------------------------------------------------------------------------


class Prompts(Hook):
    async def pre_llm(self, context: PreLlmContext) -> HookDecision:
        return AskUser(prompt="send it?") if "secret" in context.prompt else Modify(value=f"{context.prompt} Be brief.")

    async def post_llm(self, context: PostLlmContext) -> HookDecision:
        return Block(reason="rude") if "fool" in context.response else Allow()


async def test_calls_of_models_pass_hooks_and_are_recorded(nothing_left: None, settings: Settings) -> None:
    async with Engine(settings, hooks=[Prompts()]) as engine:
        assert await engine.check_prompt(PreLlmContext(prompt="Hi.", agent_id="a")) == "Hi. Be brief."
        with pytest.raises(PolicyBlocked, match="The prompt was refused by hook prompts: nobody approved it"):
            await engine.check_prompt(PreLlmContext(prompt="my secret"))
        assert await engine.check_response(PostLlmContext(prompt="Hi.", response="Hello")) == "Hello"
        with pytest.raises(PolicyBlocked, match="refused by hook prompts: rude"):
            await engine.check_response(PostLlmContext(prompt="Hi.", response="You fool"))
        entries = (await engine.history.query(HistoryQueryRequest())).history
    assert [(entry.language, entry.state, entry.decisions[0].decision) for entry in reversed(entries)] == [
        ("prompt", "finished", "modify"),
        ("prompt", "refused", "ask_user"),
        ("response", "finished", "allow"),
        ("response", "refused", "block"),
    ]
    assert entries[-1].command == "Hi. Be brief."


# --- imports --------------------------------------------------------------------------------------------------------


async def test_forgotten_imports_are_added_and_lines_stay_where_they_are(boxes: Boxes) -> None:
    settings = load_settings()
    settings.hooks = settings.hooks.model_validate({"use": ["dependency-injector"]})
    box = await boxes.make(settings=settings, template="default")
    run = await box.run('for x in [1]:\n    print(json.dumps({"x": x}))\n1 / 0\n')
    assert run.stdout == '{"x": 1}\n'
    assert run.error is not None
    assert "line 3" in run.error.traceback
    assert "line 4" not in run.error.traceback
    assert "1 / 0" in run.error.traceback
    await box.run("math = 'mine'")
    assert (await box.run("math.upper()")).text == "'MINE'"
    assert (await box.run("console.log(path.basename('/a/b'))", "javascript")).stdout == "b\n"


async def test_a_time_limit_is_for_the_hook_and_not_for_the_code(boxes: Boxes) -> None:
    settings = load_settings()
    settings.hooks.timeout_seconds = 0.05
    box = await boxes.make(Doubles(), settings=settings)
    run = await box.run("import time; time.sleep(0.3); 21", options=RunOptions(timeout=20))
    assert run.text == "42"


def test_the_sdk_takes_hooks_and_an_approver(nothing_left: None) -> None:
    class AsksForBash(Hook):
        def pre_tool(self, context: PreToolContext) -> HookDecision:
            return AskUser(prompt="bash?") if context.language == "bash" else Allow()

    with Sandbox.create(MINIMAL, hooks=[AsksForBash()], approver=lambda request: "ls" in request.code) as sandbox:
        assert sandbox.run_code("ls", "bash").exit_code == 0
        with pytest.raises(PolicyBlocked, match="refused by hook asks-for-bash"):
            sandbox.run_code("date", "bash")
        assert sandbox.history()[0].decisions[0].approved is False


async def test_an_engine_has_its_own_hooks(settings: Settings) -> None:
    async with Engine(settings) as engine:
        with pytest.raises(ValidationFailed, match="an engine has its own"):
            await AsyncSandbox.create(engine=engine, hooks=[Refuses()])
