"""Any order of executions, snapshots, rollbacks, forks, branches and kills, on real sandboxes, against a model of what
each sandbox must hold."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from emberbox import Sandbox, load_settings
from emberbox.errors import SnapshotNotFound, VmNotAvailable

BOTH_GVISORS = True

READ = "(sorted(state.items()), sorted((n, open(n).read()) for n in os.listdir('.') if not n.startswith('.')))"


@dataclass
class Content:
    """What a sandbox holds: variables of its Python, and files."""

    variables: dict[str, int] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def copy(self) -> Content:
        return Content(dict(self.variables), dict(self.files))


@dataclass
class Box:
    """A sandbox and what it must hold."""

    sandbox: Sandbox
    content: Content
    snapshots: dict[str, Content] = field(default_factory=dict)
    last: str | None = None


class Interleavings(RuleBasedStateMachine):
    """One engine, some sandboxes of it."""

    folder: Path
    boxes: Bundle[Box] = Bundle("boxes")

    def __init__(self) -> None:
        super().__init__()
        self.open = contextlib.ExitStack()
        self.all: list[Box] = []

    @initialize(target=boxes)
    def begin(self) -> Box:
        history = {"snapshot_on_failure": True}
        sandbox = self.open.enter_context(
            Sandbox.create(
                "minimal", settings=load_settings(snapshot_dir=self.folder, vm_execution={"history": history})
            )
        )
        sandbox.run_code("import os; state = {}")
        return self.add(sandbox, Content())

    def add(self, sandbox: Sandbox, content: Content) -> Box:
        box = Box(self.open.enter_context(sandbox), content)
        self.all.append(box)
        return box

    def check(self, box: Box) -> None:
        found = box.sandbox.run_code(READ).text
        assert found == repr((sorted(box.content.variables.items()), sorted(box.content.files.items())))

    @rule(box=boxes, name=st.sampled_from("abc"), value=st.integers(0, 9))
    def set_variable(self, box: Box, name: str, value: int) -> None:
        assert box.sandbox.run_code(f"state[{name!r}] = {value}").succeeded
        box.content.variables[name] = value

    @rule(box=boxes, name=st.sampled_from("fgh"), text=st.sampled_from(["", "one", "two"]))
    def write_file(self, box: Box, name: str, text: str) -> None:
        box.sandbox.files.write(name, text)
        box.content.files[name] = text

    @rule(box=boxes)
    def fail_and_go_back(self, box: Box) -> None:
        failed = box.sandbox.run_code("state.clear()\nfor n in os.listdir('.'):\n    open(n, 'w').close()\n1 / 0")
        assert not failed.succeeded
        box.sandbox.rollback(failed)
        self.check(box)

    @rule(box=boxes)
    def snapshot(self, box: Box) -> None:
        box.snapshots[box.sandbox.snapshot().snapshot_id] = box.content.copy()

    @rule(box=boxes, data=st.data())
    def rollback(self, box: Box, data: Any) -> None:
        if box.snapshots:
            chosen = data.draw(st.sampled_from(sorted(box.snapshots)))
            box.sandbox.rollback(chosen)
            box.content = box.snapshots[chosen].copy()
            self.check(box)

    @rule(box=boxes, data=st.data())
    def delete_snapshot(self, box: Box, data: Any) -> None:
        if box.snapshots:
            chosen = data.draw(st.sampled_from(sorted(box.snapshots)))
            box.sandbox.delete_snapshot(chosen)
            del box.snapshots[chosen]
            with pytest.raises(SnapshotNotFound):
                box.sandbox.rollback(chosen)

    @rule(target=boxes, box=boxes, count=st.integers(1, 2))
    def fork(self, box: Box, count: int) -> Any:
        if len(self.all) + count > 6:
            return multiple()
        return multiple(*(self.add(child, box.content.copy()) for child in box.sandbox.fork(count)))

    @rule(target=boxes, box=boxes, data=st.data())
    def branch(self, box: Box, data: Any) -> Any:
        if not box.snapshots or len(self.all) > 5:
            return multiple()
        chosen = data.draw(st.sampled_from(sorted(box.snapshots)))
        return multiple(self.add(box.sandbox.branch(chosen), box.snapshots[chosen].copy()))

    @rule(box=boxes)
    def pause_and_resume(self, box: Box) -> None:
        box.sandbox.pause()
        box.sandbox.resume()
        self.check(box)

    @precondition(lambda self: len(self.all) > 1)
    @rule(box=consumes(boxes))
    def kill(self, box: Box) -> None:
        box.sandbox.kill()
        self.all.remove(box)
        with pytest.raises(VmNotAvailable):
            box.sandbox.run_code("1")

    def teardown(self) -> None:
        with self.open:
            for box in self.all:
                self.check(box)
        left = [path for path in self.folder.rglob("*") if path.is_file() and path.name != "lock"]
        assert [path for path in left if "templates" not in path.parts] == []


def test_any_order_of_operations(nothing_left: None, tmp_path: Path) -> None:
    Interleavings.folder = tmp_path / "snapshots"
    run_state_machine_as_test(
        Interleavings,
        settings=settings(
            max_examples=5, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
