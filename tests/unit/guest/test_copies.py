"""Before and after a checkpoint: `quiesce`, `wake`, and randomness that two copies do not share."""

from __future__ import annotations

import signal

import pytest

from .conftest import Client


def test_nothing_is_sent_between_quiesce_and_wake(agent: Client) -> None:
    """A program is fed, ends and is waited for by another one: all of that happens before `wake` is asked for."""
    number = agent.begin_exec("sh", "-c", "read x; echo $x; touch over", stdin=True)
    agent.wait(number, "started")
    agent.call("quiesce")
    agent.begin("stdin", b"late\n", target=number, eof=True)
    over = agent.workdir / "over"
    while not over.exists():
        assert agent.pending() == b"", "the agent sent something while it was told to be quiet"
    ping = agent.begin("ping")
    assert agent.call("wake").final["ev"] == "done"
    assert agent.finish(number).stdout == "late\n"
    assert agent.finish(ping).final["ev"] == "done"


def test_a_copy_is_silent_about_what_the_original_had_under_way(agent: Client) -> None:
    number = agent.begin_exec("sleep", "1000")
    pid = agent.wait(number, "started").events[0][0]["pid"]
    agent.call("quiesce")
    agent.call("wake", fork=True)
    assert [p["pid"] for p in agent.call("processes").final["processes"]] == [pid], "its processes go on"
    agent.call("signal", target=number, signal=int(signal.SIGKILL))
    assert agent.call("ping").final["ev"] == "done"
    assert agent.outcomes[number].events[-1][0]["ev"] == "started"


def test_running_code_is_not_copied(agent: Client) -> None:
    number = agent.begin_code("print(1)\nwhile True: pass")
    agent.wait(number, "stdout")
    refused = agent.call("quiesce").final
    assert (refused["ev"], refused["kind"]) == ("error", "busy")
    agent.call("signal", target=number, signal=int(signal.SIGKILL))
    agent.finish(number)
    assert agent.call("ping").final["ev"] == "done"


SEEDED = [
    ("python", "import random; random.seed(7)", "print(random.random())"),
    ("bash", "RANDOM=7", "echo $RANDOM"),
]


@pytest.mark.parametrize(("language", "seed", "draw"), SEEDED)
def test_a_copy_draws_other_numbers(agent: Client, language: str, seed: str, draw: str) -> None:
    agent.code(seed, language)
    first = agent.code(draw, language).stdout
    agent.code(seed, language)
    assert agent.code(draw, language).stdout == first
    agent.code(seed, language)
    agent.call("quiesce")
    agent.call("wake", fork=True)
    assert agent.code(draw, language).stdout != first


def test_javascript_draws_from_the_system_in_a_copy(agent: Client) -> None:
    if agent.finish(agent.begin_code("1", "javascript")).final["ev"] != "done":
        pytest.skip("there is no node with acorn here")
    agent.call("quiesce")
    agent.call("wake", fork=True)
    code = (
        "const c = require('crypto');\n"
        "const all = [Math.random(), c.randomBytes(8).toString('hex'), c.randomUUID(), c.randomInt(5, 7),\n"
        "  globalThis.crypto?.getRandomValues(new Uint8Array(4)).length ?? 4,\n"
        "  c.randomFillSync(Buffer.alloc(3)).length];\n"
        "const [m, b, u, i] = all;\n"
        "[m >= 0 && m < 1, b.length, /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/.test(u),\n"
        "  i === 5 || i === 6, all[4], all[5]]"
    )
    outcome = agent.code(code, "javascript")
    assert outcome.final["error"] is None, outcome.final["error"]
    assert outcome.main is not None
    assert outcome.main["application/json"] == [True, 16, True, True, 4, 3]
