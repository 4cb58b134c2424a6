"""The agent with real sandboxes and a scripted model that is a real HTTP server: what it runs, asks and repairs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from agents import ALONE, FAILS, LOOKS, VM, Agents, Person, chat, execute, fenced, printed
from chat_server import ChatServer, Reply, Request, calls, raw_calls, refuses, says
from emberbox import Engine
from emberbox.agent import CommandStatus, TerraphimAgent
from emberbox.errors import (
    ApiError,
    ConfigError,
    ValidationFailed,
)
from emberbox.models import HistoryQueryRequest

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
async def agents(nothing_left: None) -> AsyncIterator[Agents]:
    made = Agents()
    yield made
    await made.close()


# --- without a model ------------------------------------------------------------------------------------------------


async def test_an_answer_is_run_and_state_stays_between_commands(agents: Agents) -> None:
    agent = agents.make(ALONE)
    first = await execute(agent, fenced("x = 6 * 7\nprint(x)") + fenced("echo $((6 * 7)) > f", "bash", "and then run"))
    assert (first.status, first.text, first.rounds) == (CommandStatus.COMPLETED, "42", 0)
    assert [block.language for block in first.code_blocks] == ["python", "bash"]
    assert first.intent is not None
    assert first.intent.suggested_action == "auto-execute"
    ran = {block.metadata["execution_id"] for block in first.code_blocks}
    assert ran == {run.execution_id for run in first.execution_results}
    second = await execute(agent, fenced("x + 1; open('f').read() + str(x + 1)"))
    assert second.text == "'42\\n43'"
    assert second.sandbox_id == first.sandbox_id
    assert second.succeeded


async def test_a_bare_block_runs_and_a_failure_is_told(agents: Agents) -> None:
    output = await execute(agents.make(ALONE), "```python\nprint('before')\n1 / 0\n```")
    assert (output.status, output.text) == (CommandStatus.FAILED, "before")
    assert output.execution_results[0].error == "ZeroDivisionError: division by zero"
    assert not output.succeeded


async def test_what_must_not_be_run_is_not_run(agents: Agents) -> None:
    agent = agents.make(ALONE)
    for text in (
        fenced("open('f', 'w')", words="Do not run this:"),
        fenced("1", words="For reference only:"),
        "Hello!",
    ):
        output = await execute(agent, text)
        assert (output.status, output.execution_results, output.errors) == (CommandStatus.NOTHING_RUN, [], [])
    assert agent.sandbox is None


async def test_the_policy_refuses_and_the_others_run(agents: Agents) -> None:
    output = await execute(agents.make(ALONE), fenced("rm -rf /", "bash") + fenced("print(1)", words="Now run this:"))
    assert output.status is CommandStatus.REFUSED
    assert [(error.code, output.code_blocks[error.block or 0].language) for error in output.errors] == [
        ("blocked_by_policy", "bash")
    ]
    assert printed(output) == ["1\n"]


async def test_a_time_out_has_a_status_of_its_own(agents: Agents) -> None:
    role = {"name": "r", "vm_execution": {**VM, "execution_timeout_ms": 300}}
    output = await execute(agents.make(role), fenced("while True:\n    pass"))
    assert output.status is CommandStatus.TIMEOUT


async def test_a_role_that_switches_execution_off_runs_nothing(agents: Agents) -> None:
    agent = agents.make({"name": "r", "vm_execution": {"history": {"integration_mode": "direct"}}})
    output = await execute(agent, fenced("print(1)"))
    assert (output.status, output.execution_results) == (CommandStatus.REFUSED, [])
    assert "vm_execution.enabled is false" in output.errors[0].message
    assert agent.sandbox is None


async def test_the_threshold_of_the_role_counts(agents: Agents) -> None:
    output = await execute(agents.make({**ALONE, "auto_execute_threshold": 0.95}), fenced("print(1)", ""))
    assert output.status is CommandStatus.NOTHING_RUN
    assert "sure enough" in output.notes[0]


async def test_a_question_without_a_model_is_an_error(agents: Agents) -> None:
    with pytest.raises(ConfigError, match=r"'alone' names no model"):
        await chat(agents.make(ALONE))


async def test_files_can_be_there_before_the_code(agents: Agents) -> None:
    agent = agents.make(ALONE)
    sandbox = await agent.open()
    await sandbox.files.write("data.csv", "1,2\n")
    assert (await execute(agent, fenced("print(open('data.csv').read().strip())"))).text == "1,2"


async def test_a_sandbox_that_ended_is_replaced_and_that_is_said(agents: Agents) -> None:
    agent = agents.make(ALONE)
    first = await execute(agent, fenced("x = 1"))
    assert agent.sandbox is not None
    await agent.sandbox.kill()
    second = await execute(agent, fenced("print('x' in globals())"))
    assert (second.text, second.sandbox_id != first.sandbox_id) == ("False", True)
    assert "without the files and variables" in second.notes[0]
    await agent.reset()
    assert agent.sandbox is None
    third = await execute(agent, fenced("print('x' in globals())"))
    assert (third.text, third.notes) == ("False", [])


async def test_an_engine_that_is_given_stays_open(engine: Engine) -> None:
    async with TerraphimAgent({**ALONE, "agent_id": "bot"}, engine=engine) as agent:
        assert (await execute(agent, fenced("print(1)"))).text == "1"
        assert len(await engine.list_sandboxes()) == 1
    assert await engine.list_sandboxes() == []
    (entry,) = (await engine.history.query(HistoryQueryRequest())).history
    assert (entry.agent_id, entry.command) == ("bot", "print(1)\n")
    await (await engine.create_sandbox("minimal")).kill()
    with pytest.raises(ValidationFailed, match="an engine has its own"):
        TerraphimAgent(ALONE, engine=engine, approver=lambda _: True)


async def test_the_settings_of_the_role_go_over_those_of_the_host(
    agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBERBOX_VM_EXECUTION__POLICY__DISABLED", '["python.eval"]')
    monkeypatch.setenv("EMBERBOX_VM_EXECUTION__MAX_CODE_LENGTH", "10")
    agent = agents.make({"name": "r", "vm_execution": {**VM, "max_code_length": 1_000}})
    assert (await execute(agent, fenced("print(eval('6 * 7'))"))).text == "42"


# --- people ---------------------------------------------------------------------------------------------------------


async def test_where_the_intent_is_not_clear_a_person_is_asked(agents: Agents) -> None:
    person = Person(True, False, "print('edited')")
    agent = agents.make(ALONE, approver=person)
    unsure = fenced("print('ran')", words="Here is a script:")
    assert printed(await execute(agent, unsure)) == ["ran\n"]
    refused = await execute(agent, unsure)
    assert (refused.status, refused.execution_results) == (CommandStatus.REFUSED, [])
    assert "ada refused it" in refused.errors[0].message
    assert printed(await execute(agent, unsure)) == ["edited\n"]
    assert person.asked[0].code == "print('ran')\n"
    assert "does not clearly ask" in person.asked[0].prompt
    assert printed(await execute(agent, fenced("print('clear')"))) == ["clear\n"]
    assert (await execute(agent, fenced("print('no')", words="Do not run this:"))).execution_results == []
    assert len(person.asked) == 3


async def test_what_a_person_said_is_in_the_history(engine: Engine) -> None:
    engine.hooks.approver = Person(False)
    async with TerraphimAgent(ALONE, engine=engine) as agent:
        await execute(agent, fenced("print('ran')", words="Here is a script:"))
    (entry,) = (await engine.history.query(HistoryQueryRequest())).history
    assert (entry.state, entry.blocked_by) == ("refused", "hook agent")
    assert [(one.hook, one.approved, one.approved_by) for one in entry.decisions] == [("agent", False, "ada")]


async def test_a_role_may_want_every_code_to_be_asked_about(agents: Agents) -> None:
    with ChatServer([calls(("python", "print(1)"), ("python", "print(2)")), says("done")]) as server:
        agent = agents.of(server, {"approver": Person(True, False)}, ask="always")
        output = await chat(agent)
    assert printed(output) == ["1\n"]
    assert output.status is CommandStatus.REFUSED
    assert "ada refused it" in server.requests[1].last
    nobody = await execute(agents.make({**ALONE, "ask": "always"}), fenced("print(1)"))
    assert (nobody.status, nobody.execution_results) == (CommandStatus.REFUSED, [])
    assert "nobody approved it" in nobody.errors[0].message


# --- with tools -----------------------------------------------------------------------------------------------------


async def test_several_rounds_of_tool_calls(agents: Agents) -> None:
    script = [
        calls(("python", "x = 6 * 7\nprint('secret', x)"), ("bash", "echo from bash"), text="Two at once."),
        calls(("python", "x + 1")),
        says("It is 43."),
    ]
    with ChatServer(script) as server:
        agent = agents.of(server, goals=["be exact"])
        output = await chat(agent, "What is 6 * 7 + 1?")
    assert (output.status, output.text, output.model) == (CommandStatus.COMPLETED, "It is 43.", "scripted-1")
    assert (output.rounds, output.repairs, output.bound) == (3, 0, None)
    assert printed(output) == ["secret 42\n", "from bash\n", ""]
    assert [block.metadata["round"] for block in output.code_blocks] == [1, 1, 2]
    assert output.usage is not None
    assert output.usage.total_tokens == 45
    first, second, third = server.requests
    assert "be exact" in first.messages[0]["content"]
    assert first.last == "What is 6 * 7 + 1?"
    assert first.body["tools"][0]["function"]["name"] == "ExecuteInVM"
    asked, *told = second.messages[-3:]
    assert [call["id"] for call in asked["tool_calls"]] == [message["tool_call_id"] for message in told]
    assert ["secret 42" in told[0]["content"], "from bash" in told[1]["content"]] == [True, True]
    assert '<program_output name="stdout">' in told[0]["content"]
    assert '<program_output name="result">\n43\n' in third.last


async def test_calls_that_make_no_sense_are_told_to_the_model(agents: Agents) -> None:
    script = [
        raw_calls(("ExecuteInVM", "{code: 1"), ("Browse", "{}"), ("ExecuteInVM", {"language": "python", "code": "7"})),
        raw_calls(("ExecuteInVM", '{"language": "cobol", "code": "DISPLAY 1"}')),
        says("sorry"),
    ]
    with ChatServer(script) as server:
        output = await chat(agents.of(server))
    told = [message["content"] for message in server.requests[1].messages[-3:]]
    assert "not valid JSON" in told[0]
    assert "no tool 'Browse'" in told[1]
    assert '<program_output name="result">\n7\n' in told[2]
    assert "cobol" in server.requests[2].last
    assert [error.code for error in output.errors] == ["bad_tool_call", "bad_tool_call", "unsupported_language"]
    assert (output.text, len(output.execution_results)) == ("sorry", 1)


async def test_rounds_are_bounded_and_there_is_an_answer_all_the_same(agents: Agents) -> None:
    def eager(request: Request) -> Reply:
        return calls(("python", "1")) if request.body["tool_choice"] == "auto" else says("I stop here.")

    with ChatServer(eager) as server:
        output = await chat(agents.of(server, max_rounds=3))
    assert (output.bound, output.rounds, output.text) == ("rounds", 4, "I stop here.")
    assert len(output.execution_results) == 3
    assert "No more code is run" in server.requests[-1].last

    with ChatServer(lambda _: calls(("python", "1"))) as server:  # one that does not hear
        agent = agents.of(server, max_rounds=1)
        output = await chat(agent)
        assert (len(output.execution_results), output.text, output.bound) == (1, "", "rounds")
        assert "empty answer" in output.notes[0]
        assert all("tool_calls" not in message for message in agent.conversation[-1:])


async def test_output_for_the_model_is_bounded(agents: Agents) -> None:
    with ChatServer([calls(("python", "print('begin' + 'x' * 100_000 + 'end')")), says("long")]) as server:
        output = await chat(agents.of(server, max_output_chars=500))
    assert len(server.requests[1].last) < 800
    assert "begin" in server.requests[1].last
    assert "end\n" in server.requests[1].last
    assert len(printed(output)[0]) > 100_000


async def test_a_model_with_tools_may_write_its_calls_as_text(agents: Agents) -> None:
    arguments = {"language": "python", "code": "print(6 * 7)"}
    call = f"<tool_call>\n{json.dumps({'name': 'ExecuteInVM', 'arguments': arguments})}\n</tool_call>"
    shown = "It is 42. I ran this:\n\n```python\nprint(6 * 7)\n```\n"
    with ChatServer([says(call), says(shown)]) as server:
        output = await chat(agents.of(server))
    assert (printed(output), output.text) == (["42\n"], shown)


# --- without tools --------------------------------------------------------------------------------------------------


async def test_without_tools_the_blocks_of_answers_run(agents: Agents) -> None:
    shown = "It is 42, by this code:\n\n```python\nprint(6 * 7)\n```\n"
    script = [says(fenced("print(6 * 7)", words="I run this:")), says(shown)]
    with ChatServer(script) as server:
        output = await chat(agents.of(server, use_tools="never"))
    assert (output.status, output.text, output.rounds) == (CommandStatus.COMPLETED, shown, 2)
    assert printed(output) == ["42\n"]
    assert "tools" not in server.requests[0].body
    assert "fenced block" in server.requests[0].messages[0]["content"]
    told = server.requests[1].messages[-1]
    assert told["role"] == "user"
    assert '<program_output name="stdout">\n42\n</program_output>' in told["content"]
    assert "not from a person" in told["content"]


async def test_code_that_a_model_only_shows_is_not_run(agents: Agents) -> None:
    script = [says(fenced("import shutil; shutil.rmtree('x')", words="Never run this, it deletes everything:"))]
    with ChatServer(script) as server:
        output = await chat(agents.of(server, use_tools="never"), "How do people lose their files?")
    assert (output.execution_results, output.status) == ([], CommandStatus.COMPLETED)


async def test_a_server_that_refuses_tools_is_asked_without(agents: Agents) -> None:
    def no_tools(request: Request) -> Reply:
        if "tools" in request.body:
            return refuses(400, "registry.ollama.ai/library/tiny does not support tools")
        told = any("<program_output" in message["content"] for message in request.messages[1:])
        return says("42 it is.") if told else says(fenced("print(6 * 7)"))

    with ChatServer(no_tools) as server:
        agent = agents.of(server)
        output = await chat(agent)
        assert (printed(output), output.text) == (["42\n"], "42 it is.")
        assert "takes no tools" in output.notes[0]
        again = await chat(agent)
        assert again.notes == []
    assert ["tools" in request.body for request in server.requests] == [True] + [False] * 3


async def test_a_role_may_insist_on_tools(agents: Agents) -> None:
    with ChatServer([refuses(400, "does not support tools")]) as server:
        agent = agents.of(server, use_tools="always")
        with pytest.raises(ApiError, match="does not support tools"):
            await chat(agent)


# --- repairs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("back", "seen"), [(True, "no trace False\n"), (False, "xx True\n")])
@pytest.mark.parametrize("tools", ["always", "never"])
async def test_errors_go_back_to_the_model_with_and_without_rollback(
    agents: Agents, back: bool, seen: str, tools: str
) -> None:
    def code(source: str) -> Reply:
        return calls(("python", source)) if tools == "always" else says(fenced(source))

    with ChatServer([code("kept = 1"), code(FAILS), code(FAILS + " "), code(LOOKS), says("done")]) as server:
        agent = agents.of(server, use_tools=tools, rollback_between_tries=back)
        output = await chat(agent)
        assert (output.status, output.repairs, output.rounds) == (CommandStatus.COMPLETED, 2, 5)
        assert printed(output)[-1] == seen
        assert len(output.rollbacks) == (2 if back else 0)
        assert agent.sandbox is not None
        assert await agent.sandbox.list_snapshots() == []
        assert printed(await execute(agent, fenced("print(kept)")))[-1:] == ["1\n"]  # the script has ended
    told = server.requests[2].last
    assert "ZeroDivisionError" in told
    assert ("go back to what they were" in told) is back


async def test_repairs_are_bounded(agents: Agents) -> None:
    def stubborn(request: Request) -> Reply:
        if "No more code is run" in request.last:
            return says("I give up.")
        return calls(("python", f"raise ValueError({len(request.messages)})"))

    with ChatServer(stubborn) as server:
        output = await chat(agents.of(server, max_repairs=2))
    assert (output.bound, output.repairs, output.text) == ("repairs", 2, "I give up.")
    assert output.status is CommandStatus.FAILED
    assert len(output.execution_results) == 3


async def test_code_of_a_person_is_repaired(agents: Agents) -> None:
    with ChatServer([calls(("python", "print(1 / 1)")), says("It is 1.")]) as server:
        output = await execute(agents.of(server), fenced("print(1 / 0)"))
    assert (output.status, output.text, output.repairs) == (CommandStatus.COMPLETED, "It is 1.", 1)
    assert [run.exit_code for run in output.execution_results] == [1, 0]
    told = server.requests[0].last
    assert told.startswith("Run this:")
    assert "ZeroDivisionError" in told
    assert "correct the code" in told


async def test_code_that_does_not_parse_is_repaired_and_never_run(agents: Agents) -> None:
    broken = fenced("touch here\nif true; then", "bash")
    with ChatServer([says(broken), says(fenced("ls", "bash")), says("nothing there")]) as server:
        output = await chat(agents.of(server, use_tools="never"))
    assert (output.status, output.repairs) == (CommandStatus.COMPLETED, 1)
    assert printed(output) == [""]
    assert [error.code for error in output.errors] == ["validation_failed"]
    assert "did not run" in server.requests[1].last


async def test_what_was_undone_may_run_again(agents: Agents) -> None:
    makes, fails, mended = fenced("y = 5"), fenced("y / 0", words="and run"), fenced("print(y / 5)", words="and run")
    with ChatServer([says(makes + fails), says(makes + mended), says("1")]) as server:
        output = await chat(agents.of(server, use_tools="never", rollback_between_tries=True))
    assert (output.status, printed(output)[-1]) == (CommandStatus.COMPLETED, "1.0\n")
    assert len(output.execution_results) == 4


async def test_a_refusal_is_told_and_needs_no_repair(agents: Agents) -> None:
    with ChatServer([calls(("bash", "rm -rf /")), says("I may not.")]) as server:
        output = await chat(agents.of(server, max_repairs=0))
    assert (output.status, output.text, output.repairs) == (CommandStatus.REFUSED, "I may not.", 0)
    assert "bash.rm-rf" in server.requests[1].last


async def test_results_go_to_the_model_after_a_success(agents: Agents) -> None:
    with ChatServer([says("The answer is 42.")]) as server:
        output = await execute(agents.of(server), fenced("print(6 * 7)"))
    assert (output.text, output.rounds, printed(output)) == ("The answer is 42.", 1, ["42\n"])
    assert "42" in server.requests[0].last


async def test_a_text_without_code_is_a_question(agents: Agents) -> None:
    with ChatServer([says("Paris.")]) as server:
        output = await execute(agents.of(server), "What is the capital of France?")
    assert (output.status, output.text) == (CommandStatus.COMPLETED, "Paris.")
    assert server.requests[0].last == "What is the capital of France?"


async def test_code_that_must_not_run_goes_to_no_model(agents: Agents) -> None:
    with ChatServer() as server:
        output = await execute(agents.of(server), fenced("print(1)", words="Do not run this:"))
    assert output.status is CommandStatus.NOTHING_RUN
    assert server.requests == []


async def test_a_chat_without_execution_offers_none(agents: Agents) -> None:
    with ChatServer([says(fenced("print(1)"))]) as server:
        output = await chat(agents.of(server, vm_execution={"history": {"integration_mode": "direct"}}))
    assert "tools" not in server.requests[0].body
    assert "cannot run code" in server.requests[0].messages[0]["content"]
    assert (output.status, output.execution_results) == (CommandStatus.COMPLETED, [])
