"""The agent around its model: hooks, servers, the conversation, and what goes wrong."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agents import ALONE, FAILS, LOOKS, VM, Agents, Person, chat, execute, fenced, printed
from chat_server import ChatServer, Reply, Request, calls, refuses, says
from emberbox import Engine, Settings
from emberbox.agent import CommandInput, CommandStatus, CommandType, TerraphimAgent
from emberbox.errors import (
    ApiError,
    ConfigError,
    ExecutionTimeout,
    Unauthorized,
    ValidationFailed,
    VmConnectionError,
    VmExecutionError,
    VmNotAvailable,
)
from emberbox.hooks import (
    Allow,
    Block,
    Hook,
    HookDecision,
    HookManager,
    Modify,
    PostLlmContext,
    PreLlmContext,
    PreToolContext,
)
from emberbox.models import CodeBlock, Execution, HistoryQueryRequest
from emberbox.sandbox.listeners import Listeners
from served import Served

pytestmark = pytest.mark.usefixtures("nothing_left")

KEY = "sk-test-0123456789abcdef"


@pytest.fixture
async def agents(nothing_left: None) -> AsyncIterator[Agents]:
    made = Agents()
    yield made
    await made.close()


# --- hooks ----------------------------------------------------------------------------------------------------------


class Words(Hook):
    """Blocks and changes prompts and answers by what stands in them."""

    def __init__(self) -> None:
        self.prompts: list[PreLlmContext] = []
        self.answers: list[PostLlmContext] = []
        self.codes: list[PreToolContext] = []

    async def pre_llm(self, context: PreLlmContext) -> HookDecision:
        self.prompts.append(context)
        if "forbidden" in context.prompt:
            return Block(reason="not that word")
        return Modify(value=context.prompt.replace("hunter2", "***")) if "hunter2" in context.prompt else Allow()

    async def post_llm(self, context: PostLlmContext) -> HookDecision:
        self.answers.append(context)
        if "evil" in context.response:
            return Block(reason="an evil answer")
        return Modify(value=context.response.replace("rude", "kind")) if "rude" in context.response else Allow()

    async def pre_tool(self, context: PreToolContext) -> HookDecision:
        self.codes.append(context)
        return Allow()


async def test_hooks_change_prompts_and_answers_and_see_every_call(agents: Agents) -> None:
    words = Words()
    script = [calls(("python", "print('hunter2')")), says("a rude answer")]
    with ChatServer(script) as server:
        agent = agents.of(server, {"hooks": [words]}, agent_id="bot")
        output = await chat(agent, "my password is hunter2")
    assert output.text == "a kind answer"
    assert server.requests[0].last == "my password is ***"
    assert "***" in server.requests[1].last  # the output of the program is a prompt as well
    assert "hunter2" not in server.requests[1].messages[1]["content"]
    assert agent.conversation[-1]["content"] == "a kind answer"
    assert [context.agent_id for context in words.prompts] == ["bot", "bot"]
    assert [message["role"] for message in words.prompts[1].conversation_history] == ["user", "assistant"]
    assert words.prompts[1].vm_id == output.sandbox_id
    assert words.answers[0].metadata["tool_calls"][0]["name"] == "ExecuteInVM"
    assert (words.answers[1].model, words.answers[1].token_count, words.answers[1].role) == ("scripted-1", 5, "tester")
    assert (words.codes[0].role, words.codes[0].metadata["round"]) == ("tester", 1)


async def test_a_blocked_prompt_is_not_sent_and_not_kept(agents: Agents) -> None:
    with ChatServer([says("hello")]) as server:
        agent = agents.of(server, {"hooks": [Words()]})
        output = await chat(agent, "a forbidden thing")
        assert (output.status, output.text, output.rounds) == (CommandStatus.BLOCKED, "", 0)
        assert "refused by hook words: not that word" in output.errors[0].message
        assert server.requests == []
        assert agent.conversation == []
        assert (await chat(agent, "hi")).text == "hello"
        assert [message["content"] for message in server.requests[0].messages[1:]] == ["hi"]


async def test_a_blocked_answer_is_neither_shown_nor_run(agents: Agents) -> None:
    with ChatServer([says(fenced("open('f', 'w')", words="My evil plan. Run this:"))]) as server:
        agent = agents.of(server, {"hooks": [Words()]}, use_tools="never")
        output = await chat(agent)
    assert (output.status, output.text, output.execution_results) == (CommandStatus.BLOCKED, "", [])
    assert output.errors[0].code == "blocked_by_policy"
    assert "evil" not in output.model_dump_json().replace("an evil answer", "")
    assert agent.conversation == []


async def test_output_that_a_hook_blocks_goes_to_no_model(agents: Agents) -> None:
    with ChatServer([calls(("python", "print('forb' + 'idden')"))]) as server:
        output = await chat(agents.of(server, {"hooks": [Words()]}))
    assert (output.status, len(output.execution_results), len(server.requests)) == (CommandStatus.BLOCKED, 1, 1)


async def test_prompts_and_answers_are_in_the_history(engine: Engine) -> None:
    engine.hooks.add_hook(Words())
    with ChatServer([says("a rude answer")]) as server:
        async with TerraphimAgent(server.role(), engine=engine) as agent:
            await chat(agent, "hi")
            await chat(agent, "a forbidden thing")
    entries = (await engine.history.query(HistoryQueryRequest())).history
    assert [(entry.language, entry.state, entry.command) for entry in entries] == [
        ("prompt", "refused", "a forbidden thing"),
        ("response", "finished", "a kind answer"),
        ("prompt", "finished", "hi"),
    ]
    assert {entry.agent_id for entry in entries} == {"tester"}


async def test_a_manager_of_hooks_can_be_given(agents: Agents) -> None:
    manager = HookManager([Words()])
    with ChatServer([says("a rude answer")]) as server:
        assert (await chat(agents.of(server, {"hooks": manager}))).text == "a kind answer"


async def test_with_a_server_the_hooks_here_are_asked_about_prompts(agents: Agents) -> None:
    with ChatServer([says("a rude answer")]) as server:
        agent = agents.of(server, {"hooks": [Words()]}, vm_execution={"enabled": True})
        assert (await chat(agent, "hunter2")).text == "a kind answer"
        assert (await chat(agent, "forbidden")).status is CommandStatus.BLOCKED
    assert server.requests[0].last == "***"


# --- behind a server ------------------------------------------------------------------------------------------------


async def test_code_runs_on_a_server_with_repairs_hooks_and_rollback(served: Served, agents: Agents) -> None:
    words = Words()
    vm = {"enabled": True, "default_vm_type": "minimal", "api_base_url": served.url}
    script = [calls(("python", "kept = 1"), ("bash", "rm -rf /")), calls(("python", FAILS)), calls(("python", LOOKS))]
    with ChatServer([*script, calls(("python", "print(kept)")), says("done")]) as server:
        agent = agents.of(server, {"hooks": [words]}, vm_execution=vm, agent_id="far", rollback_between_tries=True)
        output = await chat(agent)
    assert (output.status, output.repairs, len(output.rollbacks)) == (CommandStatus.COMPLETED, 1, 1)
    assert printed(output) == ["", "", "no trace False\n", "1\n"]
    assert [error.code for error in output.errors] == ["blocked_by_policy"]
    assert words.codes[0].agent_id == "far"
    with served.client() as client:
        (vm_there,) = client.get("/api/vms", params={"agent_id": "far"}).json()["vms"]
        assert vm_there["id"] == output.sandbox_id
        await agent.close()
        assert client.get("/api/vms", params={"agent_id": "far"}).json()["vms"] == []


async def test_a_cancelled_command_kills_its_code_on_a_server(served: Served, agents: Agents) -> None:
    began = Began()
    text = fenced("print('started', flush=True)\nimport time\ntime.sleep(1000)")
    vm = {"enabled": True, "default_vm_type": "minimal", "api_base_url": served.url}
    agent = agents.make({"name": "far", "vm_execution": vm})
    running = asyncio.create_task(agent.process_command(CommandInput(command=CommandType.EXECUTE, text=text), began))
    await asyncio.wait_for(began.event.wait(), 60)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (await execute(agent, fenced("print(6 * 7)"))).text == "42"


async def test_a_person_here_is_asked_before_a_server_runs(served: Served, agents: Agents) -> None:
    vm = {"enabled": True, "default_vm_type": "minimal", "api_base_url": served.url}
    agent = agents.make({"name": "far", "vm_execution": vm}, approver=Person(False, True))
    unsure = fenced("print('ran')", words="Here is a script:")
    assert (await execute(agent, unsure)).status is CommandStatus.REFUSED
    assert printed(await execute(agent, unsure)) == ["ran\n"]


async def test_a_server_that_is_not_there_is_named(agents: Agents) -> None:
    vm = {"enabled": True, "api_base_url": "http://127.0.0.1:9"}
    with pytest.raises(VmConnectionError, match=r"127\.0\.0\.1:9"):
        await execute(agents.make({"name": "far", "vm_execution": vm}), fenced("1"))


# --- conversation ---------------------------------------------------------------------------------------------------


async def test_the_conversation_is_kept_between_commands(agents: Agents) -> None:
    with ChatServer([calls(("python", "print(1)")), says("one"), says("two"), says("three")]) as server:
        agent = agents.of(server)
        await chat(agent, "first")
        await chat(agent, "second")
        roles = [message["role"] for message in server.requests[2].messages]
        assert roles == ["system", "user", "assistant", "tool", "assistant", "user"]
        assert [message["content"] for message in agent.conversation if message["role"] == "user"] == [
            "first",
            "second",
        ]
        await agent.reset()
        await chat(agent, "third")
        assert [message["content"] for message in server.requests[3].messages[1:]] == ["third"]


async def test_the_conversation_is_bounded_by_whole_turns(agents: Agents) -> None:
    def model(request: Request) -> Reply:
        return says("noted") if request.messages[-1]["role"] == "tool" else calls(("python", "1"), ("python", "2"))

    with ChatServer(model) as server:
        agent = agents.of(server, max_messages=12)
        for number in range(4):
            output = await chat(agent, f"question {number}")
        assert len(agent.conversation) <= 12
        assert "oldest messages were dropped" in output.notes[0]
    for request in server.requests:
        made = [call["id"] for message in request.messages for call in message.get("tool_calls", [])]
        assert made == [message["tool_call_id"] for message in request.messages if message["role"] == "tool"]
    assert [message["content"] for message in agent.conversation if message["role"] == "user"] == [
        "question 2",
        "question 3",
    ]


async def test_a_question_that_is_too_long_is_refused(agents: Agents) -> None:
    with ChatServer() as server:
        with pytest.raises(ValidationFailed, match="longer than 2500 characters"):
            await chat(agents.of(server, max_conversation_chars=10_000), "x" * 2_501)
        assert server.requests == []


async def test_an_answer_that_is_too_long_is_refused(agents: Agents) -> None:
    with ChatServer([says("x" * 2_501)]) as server:
        agent = agents.of(server, max_conversation_chars=10_000)
        with pytest.raises(ApiError, match="longer than 2500 characters"):
            await chat(agent)
        assert agent.conversation == []


async def test_commands_at_once_wait_for_each_other(agents: Agents) -> None:
    with ChatServer([says("one"), says("two")]) as server:
        agent = agents.of(server)
        await asyncio.gather(chat(agent, "a"), chat(agent, "b"))
        assert [message["content"] for message in agent.conversation] == ["a", "one", "b", "two"]


# --- when things go wrong -------------------------------------------------------------------------------------------


async def test_the_key_is_nowhere(
    agents: Agents, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    script = [calls(("python", "import os\nprint(dict(os.environ))")), says("ok"), refuses(401, f"bad key {KEY}")]
    with ChatServer(script) as server:
        agent = agents.of(server)
        output = await chat(agent)
        with pytest.raises(Unauthorized) as caught:
            await chat(agent)
        assert server.requests[0].headers["Authorization"] == f"Bearer {KEY}"
    error = caught.value
    seen = [output.model_dump_json(), json.dumps(agent.conversation), repr(vars(agent)), caplog.text]
    seen += [json.dumps(error.to_dict()), repr(error), repr(error.__context__), repr(agent.role)]
    assert [text for text in seen if KEY in text] == []
    await agent.close()
    stored = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert stored
    assert not any(KEY.encode() in data for data in stored)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (refuses(401, "who are you"), Unauthorized),
        (Reply(b"garbage"), ApiError),
        (Reply(b" " * (9 << 20)), ApiError),
        (Reply(hangs=True), ExecutionTimeout),
    ],
)
async def test_a_model_that_fails_leaves_the_conversation_as_it_was(
    agents: Agents, reply: Reply, kind: type[VmExecutionError]
) -> None:
    with ChatServer([says("hello"), reply, says("still here")]) as server:
        agent = agents.of(server, llm_timeout_seconds=2)
        await chat(agent, "one")
        with pytest.raises(kind):
            await chat(agent, "two")
        assert (await chat(agent, "three")).text == "still here"
    assert [message["content"] for message in server.requests[2].messages[1:]] == ["one", "hello", "three"]


async def test_what_ran_is_not_lost_with_the_model(agents: Agents) -> None:
    with ChatServer([calls(("python", "print(42)")), refuses(401, "expired")]) as server:
        output = await chat(agents.of(server))
    assert (output.status, printed(output)) == (CommandStatus.FAILED, ["42\n"])
    assert [(error.code, error.block) for error in output.errors] == [("unauthorized", None)]
    with ChatServer([Reply(b"garbage")]) as server:
        output = await execute(agents.of(server), fenced("print(43)"))
    assert (output.status, output.text) == (CommandStatus.FAILED, "43")


async def test_a_model_that_is_not_there_is_said(agents: Agents) -> None:
    with ChatServer() as server:
        role = server.role()
    with pytest.raises(VmConnectionError, match="cannot be reached"):
        await chat(agents.make(role))


async def test_a_missing_key_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY is not set"):
        TerraphimAgent({**ALONE, "llm_provider": "openai", "llm_model": "gpt"})


async def test_no_back_end_is_an_error(agents: Agents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBERBOX_RUNSC", "/nowhere/runsc")
    with pytest.raises(VmNotAvailable, match="No back end"):
        await execute(agents.make(ALONE), fenced("1"))


class Began:
    """Tells when code has printed its first word."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.heard: list[str] = []

    async def model_answered(self, text: str, *, final: bool) -> None:
        self.heard.append(f"model {text} {final}")

    async def taken_back(self, snapshot_id: str) -> None:
        self.heard.append("back")

    async def block_begins(self, index: int, block: CodeBlock) -> Listeners:
        self.heard.append(f"begins {index} {block.language}")

        def on_stdout(text: str) -> None:
            self.heard.append(text)
            self.event.set()

        return Listeners(on_stdout)

    async def block_ran(self, index: int, execution: Execution) -> None:
        self.heard.append(f"ran {index} {execution.exit_code}")

    async def block_refused(self, index: int, error: VmExecutionError) -> None:
        self.heard.append(f"refused {index} {error.code}")


async def test_every_step_can_be_heard(agents: Agents) -> None:
    script = [
        calls(("python", "print('a')\n1 / 0"), text="trying"),
        calls(("bash", "rm -rf /"), ("bash", "echo b")),
        says("x"),
    ]
    began = Began()
    with ChatServer(script) as server:
        agent = agents.of(server, rollback_between_tries=True)
        await agent.process_command(CommandInput(command=CommandType.CHAT, text="go"), began)
    assert began.heard == [
        "model trying False", "begins 0 python", "a\n", "ran 0 1",
        "model  False", "back", "begins 1 bash", "refused 1 blocked_by_policy", "begins 2 bash", "b\n", "ran 2 0",
        "model x True",
    ]  # fmt: skip


async def test_a_cancelled_command_kills_its_code_and_the_agent_goes_on(agents: Agents) -> None:
    began = Began()
    endless = "print('started', flush=True)\nimport time\ntime.sleep(1000)"
    with ChatServer([calls(("python", endless)), says("hello")]) as server:
        agent = agents.of(server)
        command = CommandInput(command=CommandType.CHAT, text="wait")
        running = asyncio.create_task(agent.process_command(command, began))
        await asyncio.wait_for(began.event.wait(), 60)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert agent.conversation == []
        assert (await chat(agent, "hi")).text == "hello"
        assert agent.sandbox is not None
        assert await agent.sandbox.commands.list() == []


async def test_a_command_that_waits_for_its_model_can_be_cancelled(agents: Agents) -> None:
    with ChatServer([Reply(hangs=True)]) as server:
        agent = agents.of(server)
        running = asyncio.create_task(chat(agent))
        await asyncio.to_thread(server.asked.wait, 10)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_closing_ends_what_is_under_way(agents: Agents) -> None:
    began = Began()
    agent = agents.make(ALONE)
    text = fenced("print('started', flush=True)\nimport time\ntime.sleep(1000)")
    running = asyncio.create_task(agent.process_command(CommandInput(command=CommandType.EXECUTE, text=text), began))
    await asyncio.wait_for(began.event.wait(), 60)
    await agent.close()
    output = await running
    assert not output.succeeded
    with pytest.raises(VmNotAvailable, match="agent is closed"):
        await execute(agent, fenced("1"))
    await agent.close()


async def test_a_role_file_is_enough(agents: Agents, tmp_path: Path) -> None:
    path = tmp_path / "role.json"
    path.write_text(json.dumps({"name": "r", "extra": {"extra": {"vm_execution": VM}}}))
    assert (await execute(agents.make(path), fenced("print(1)"))).text == "1"


def test_settings_and_hooks_that_are_wrong_are_said_at_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBERBOX_HOOKS__USE", '["no-such-hook"]')
    with pytest.raises(ConfigError, match="no-such-hook"):
        TerraphimAgent(ALONE)
