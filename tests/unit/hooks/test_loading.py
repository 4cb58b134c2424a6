"""Hooks by the names that settings give them."""

from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from emberbox.errors import ConfigError
from emberbox.hooks import Block, Hook, HookDecision, PreToolContext, loading
from emberbox.hooks.loading import built_in, load_hook, manager_of
from emberbox.languages.policy import Policy
from emberbox.models import HooksConfig, HookUse, VmExecutionConfig

CONFIG, POLICY = VmExecutionConfig(), Policy()


def load(name: str, **options: Any) -> Hook:
    return load_hook(HookUse(name=name, options=options), CONFIG, POLICY)


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme_policy.py").write_text(
        "from emberbox.hooks import Block, Hook\n"
        "class Quota(Hook):\n"
        "    def __init__(self, most=10):\n"
        "        self.most = most\n"
        "    def pre_tool(self, context):\n"
        "        return Block(reason=f'{self.most} are enough')\n"
        "NOTHING = object\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


def test_every_built_in_hook_can_be_named() -> None:
    assert sorted(built_in(CONFIG, POLICY)) == [
        "dangerous-pattern", "dependency-injector", "execution-logger", "output-sanitizer", "syntax-validation",
    ]  # fmt: skip
    for name in built_in(CONFIG, POLICY):
        assert load(name).name == name


@pytest.mark.usefixtures("own_module")
async def test_a_class_of_ones_own_is_named_by_its_module() -> None:
    config = HooksConfig.model_validate({"use": [{"name": "acme_policy:Quota", "options": {"most": 3}}]})
    decision = await manager_of(config, CONFIG, POLICY).run_pre_tool(PreToolContext(code="1", language="python"))
    assert decision == Block(reason="3 are enough", hook="quota")


class Listed(Hook):
    async def pre_tool(self, context: PreToolContext) -> HookDecision:
        return Block(reason="listed")


def test_an_entry_point_is_named_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoints([EntryPoint("acme", f"{__name__}:Listed", loading.GROUP)])
    monkeypatch.setattr(loading, "entry_points", points.select)
    assert type(load("acme")).__name__ == "Listed"
    with pytest.raises(ConfigError, match="there is no hook 'acne'; known are acme, dangerous-pattern"):
        load("acne")


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("nowhere:Hook", {}, "hooks.use: 'nowhere:Hook' cannot be imported: No module named 'nowhere'"),
        ("acme_policy:Missing", {}, "cannot be imported: module 'acme_policy' has no attribute 'Missing'"),
        ("acme_policy:Quota", {"least": 1}, "hook 'acme_policy:Quota' cannot be made: TypeError"),
        ("acme_policy:NOTHING", {}, "'acme_policy:NOTHING' is no hook"),
        ("output-sanitizer", {"kinds": ["nonsense"]}, "nonsense"),
    ],
)
def test_what_cannot_be_loaded_is_named_with_the_reason(name: str, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        load(name, **options)


def test_a_name_alone_is_enough_and_wrong_keys_are_named() -> None:
    assert HooksConfig.model_validate({"use": ["output-sanitizer"]}).use == [HookUse(name="output-sanitizer")]
    with pytest.raises(ValidationError, match="colour"):
        HooksConfig.model_validate({"use": [{"name": "x", "colour": 1}]})


async def test_order_and_scope_come_from_the_settings() -> None:
    uses: list[Any] = [
        {"name": "syntax-validation", "order": 2},
        {"name": "dangerous-pattern", "order": 1, "agents": ["a"]},
    ]
    manager = manager_of(HooksConfig(use=uses), CONFIG, POLICY)
    assert [hook.name for hook in manager.hooks] == ["dangerous-pattern", "syntax-validation"]
    bad = PreToolContext(code="cat /etc/shadow; (", language="bash", agent_id="a")
    assert getattr(await manager.run_pre_tool(bad), "hook", "") == "dangerous-pattern"
    other = bad.model_copy(update={"agent_id": "b"})
    assert getattr(await manager.run_pre_tool(other), "hook", "") == "syntax-validation"
