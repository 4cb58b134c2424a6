"""The contract of hooks."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
from pydantic import TypeAdapter, ValidationError

from emberbox import hooks
from emberbox.hooks import Allow, AskUser, Block, Hook, HookDecision, Modify, PreToolContext, ToolOutput


def test_everything_that_is_promised_can_be_had() -> None:
    assert sorted(hooks.__all__) == hooks.__all__
    for name in hooks.__all__:
        assert getattr(hooks, name) is not None
    assert {name for names in hooks._HOMES.values() for name in names} == set(hooks.__all__)
    with pytest.raises(AttributeError, match=r"module 'emberbox\.hooks' has no attribute 'Hocks'"):
        hooks.Hocks  # noqa: B018


def test_a_hook_costs_only_what_it_needs() -> None:
    code = "import sys; from emberbox.hooks import Hook, HookManager; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(done.stdout.split())
    assert loaded.isdisjoint({"structlog", "pyflakes", "tree_sitter"})


@pytest.mark.parametrize(
    "decision",
    [Allow(), Block(reason="no"), Modify(value="x"), Modify(value=ToolOutput(stdout="x")), AskUser(prompt="really?")],
)
def test_decisions_are_told_apart_by_their_tag(decision: HookDecision) -> None:
    adapter: TypeAdapter[HookDecision] = TypeAdapter(HookDecision)
    assert adapter.validate_json(adapter.dump_json(decision)) == decision


def test_decisions_need_their_fields() -> None:
    with pytest.raises(ValidationError, match="reason"):
        Block()  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="extra"):
        Allow(reason="why")  # type: ignore[call-arg]


async def test_a_hook_that_overrides_nothing_allows_everything() -> None:
    answer = Hook().pre_tool(PreToolContext(code="1", language="python"))
    assert inspect.isawaitable(answer)
    assert await answer == Allow()


def test_contexts_cannot_be_changed() -> None:
    context = PreToolContext(code="1", language="python")
    with pytest.raises(ValidationError, match="frozen"):
        setattr(context, "code", "2")  # noqa: B010 - what the type checker forbids


@pytest.mark.parametrize(
    ("name", "told"), [("NoSocketsHook", "no-sockets"), ("Hook", "hook"), ("my_check", "my-check")]
)
def test_hooks_are_named_after_their_class(name: str, told: str) -> None:
    assert type(name, (Hook,), {})().name == told
