"""Differences of two points whose machines say what they like. The machines are made up here."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, cast

import pytest

from emberbox.errors import ExecutionFailed, GuestFileError
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sandbox.snapshots import diff as module
from emberbox.sandbox.snapshots.diff import MOST_FILES_READ, MOST_TEXTS, diff
from emberbox.sandbox.snapshots.file_trees import LONGEST_COMPARED
from emberbox.sandbox.snapshots.unified import Effort, unified_diff


class Machine:
    """Files by path: content of a file, or a row of the tree as it is; and the answer to `tree` where it is no rows."""

    def __init__(
        self, files: dict[str, bytes] | None = None, *, rows: list[Any] | None = None, raw: bytes = b""
    ) -> None:
        self._files = files or {}
        self._rows = rows or []
        self._raw = raw
        self.files = self
        self.read: list[str] = []
        self.sent = 0

    def open_channel(self) -> Machine:
        return self

    async def call(self, op: str, **_: object) -> tuple[dict[str, object], bytes]:
        assert op == "tree"
        rows = [[path, "file", len(data), 0o644, str(id(self)), None] for path, data in self._files.items()]
        return {"exact": True}, self._raw or json.dumps(rows + self._rows).encode()

    async def read_stream(self, path: str) -> AsyncIterator[bytes]:
        self.read.append(path)
        if path not in self._files:
            raise GuestFileError("No such file or directory", details={"errno": "ENOENT"})
        for start in range(0, len(self._files[path]), 1 << 18):
            piece = self._files[path][start : start + (1 << 18)]
            self.sent += len(piece)
            yield piece


async def between(then: Machine, now: Machine) -> dict[str, tuple[str, str | None]]:
    found = await diff(cast("SandboxInstance", then), cast("SandboxInstance", now))
    return {diff.path: (diff.change, diff.diff) for diff in found}


async def test_so_many_files_are_shown_read_and_named() -> None:
    count = MOST_FILES_READ + 200
    then = Machine({f"/f{n:05}": b"old\n" for n in range(count)})
    now = Machine({f"/f{n:05}": b"new\n" for n in range(count)})
    found = await between(then, now)
    assert len(found) == count
    assert {change for change, _ in found.values()} == {"changed"}
    assert sum(diff is not None for _, diff in found.values()) == MOST_TEXTS
    assert len(then.read) + len(now.read) <= MOST_FILES_READ


async def test_so_many_bytes_are_read_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    then = Machine({f"/f{n}": bytes([65 + n]) * 300_000 for n in range(9)})
    now = Machine({f"/f{n}": bytes([75 + n]) * 300_000 for n in range(9)})

    monkeypatch.setattr(module, "_Left", partial(module._Left, read=1 << 20, characters=1000))
    found = await between(then, now)
    assert len(found) == 9
    assert then.sent + now.sent <= 1 << 20
    text = "".join(f"{n}\n" for n in range(1000)).encode()
    assert await between(Machine(), Machine({"/a": b"x\n", "/b": text})) == {
        "/a": ("created", "--- /dev/null\n+++ b/a\n@@ -0,0 +1 @@\n+x\n"),
        "/b": ("created", None),
    }


async def test_work_is_shared_by_all_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many files are expensive, their search takes so many steps together."""
    searched: list[int] = []

    def counting(old: str, new: str, a: str, b: str, effort: Effort) -> str:
        searched.append(effort.left)
        return unified_diff(old, new, a, b, effort)

    monkeypatch.setattr(module, "unified_diff", counting)
    monkeypatch.setattr(module, "MOST_STEPS_IN_ALL", 4000)
    monkeypatch.setattr(module, "MOST_STEPS", 1500)
    monkeypatch.setattr(module, "LEAST_STEPS", 20)
    then = Machine({f"/f{n}": b"a\nb\n" * 200 for n in range(8)} | {"/g": b"x\n"})
    now = Machine({f"/f{n}": b"b\na\na\n" * 200 for n in range(8)} | {"/g": b"y\n"})
    found = await between(then, now)
    assert [path for path, (_, diff) in found.items() if diff is not None] == ["/g"]
    assert searched[:2] == [1500, 1500]
    assert searched[4:] == [20] * 5


async def test_a_file_that_is_longer_than_it_was_said_to_be_is_left() -> None:
    then = Machine({"/f": b"x"})
    now = Machine({"/f": b"yy" * LONGEST_COMPARED}, raw=json.dumps([["/f", "file", 1, 0o644, "m", None]]).encode())
    assert await between(then, now) == {"/f": ("changed", None)}
    assert now.sent <= LONGEST_COMPARED + (1 << 18)


async def test_a_file_that_has_gone_meanwhile_differs() -> None:
    now = Machine(rows=[["/f", "file", 1, 0o644, "m", None]])
    assert await between(Machine({"/f": b"x"}), now) == {"/f": ("changed", None)}


async def test_names_and_targets_that_are_no_text() -> None:
    link = ["/l", "symlink", 1, 0o777, "m", "\ud800"]
    evil = ["/x\n+++ b/etc/passwd", "symlink", 1, 0o777, "m", "y"]
    found = await between(Machine(), Machine(rows=[link, evil]))
    assert found["/l"] == ("created", None)
    assert [diff for path, (_, diff) in found.items() if path.startswith("/x")] == [None]


@pytest.mark.parametrize(
    "raw",
    [
        json.dumps([["/f", "file", 1, 1, "m", None]] * 50_000).encode(),
        json.dumps([["/f" * 2000, "file", 1, 1, "", None]]).encode(), b'[[7,"file",1,1,"m",null]]', b"[[]]", b'{"a":1}',
        b"nonsense", b"[1]", b"{}x", b"5", b'[["/f","file",1e999,1,"m",null]]', b'[["/f","file"]]', b"[" * 100_000,
        b'[["/f","file",' + b"9" * 5000 + b',1,"m",null]]',
    ],
)  # fmt: skip
async def test_an_answer_that_makes_no_sense_is_an_error(raw: bytes) -> None:
    with pytest.raises(ExecutionFailed, match="is not valid"):
        await between(Machine(), Machine(raw=raw))
