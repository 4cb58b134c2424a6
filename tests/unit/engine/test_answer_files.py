"""The files that an answer names, as they are written before its code runs."""

from __future__ import annotations

from typing import Any, cast

from emberbox.engine.answer_files import AnswerFiles
from emberbox.models import CodeBlock
from emberbox.sandbox.files import GuestFiles


class Written:
    """Stands for the files of a sandbox."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    async def write(self, path: str, data: str) -> None:
        self.calls.append((path, data))


def block(code: str, start: int, file: str = "") -> CodeBlock:
    metadata: dict[str, Any] = {"file": file} if file else {}
    return CodeBlock(
        language="python", code=code, execution_confidence=1, start_pos=start, end_pos=start + 1, metadata=metadata
    )


async def test_all_files_are_there_before_the_first_block_and_later_versions_with_their_own() -> None:
    first, main, second = block("1", 0, "a.py"), block("m", 5), block("2", 9, "a.py")
    other = block("o", 7, "pkg/b.json")
    files, written = AnswerFiles([second, main, other, first], lambda _: True), Written()
    await files.write(cast("GuestFiles", written), main)
    assert sorted(written.calls) == [("a.py", "1"), ("pkg/b.json", "o")]
    await files.write(cast("GuestFiles", written), main)
    assert len(written.calls) == 2
    await files.write(cast("GuestFiles", written), second)
    assert written.calls[-1] == ("a.py", "2")


async def test_what_must_not_stand_there_is_not_written() -> None:
    files, written = AnswerFiles([block("bad", 0, "a.py")], lambda one: one.code != "bad"), Written()
    await files.write(cast("GuestFiles", written), block("m", 5))
    assert written.calls == []
