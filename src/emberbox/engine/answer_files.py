"""The files that an answer names: written into the sandbox before its code runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from emberbox.models import CodeBlock
from emberbox.sandbox.files import GuestFiles


class AnswerFiles:
    """The blocks that a text says to save under a name (`metadata["file"]`, relative and inside the work directory).

    Args:
        blocks: all blocks of the answer.
        may_be_written: whether a block may stand in the sandbox as a file.
    """

    def __init__(self, blocks: Sequence[CodeBlock], may_be_written: Callable[[CodeBlock], bool]) -> None:
        self._blocks = sorted((block for block in blocks if "file" in block.metadata), key=lambda one: one.start_pos)
        self._may_be_written = may_be_written
        self._begun = False

    async def write(self, files: GuestFiles, block: CodeBlock) -> None:
        """Writes what a block that is about to run needs: at first all files, the first version of each; then its own.

        Raises:
            VmExecutionError: a file cannot be written.
        """
        wanted = [block] if "file" in block.metadata else []
        if not self._begun:
            self._begun = True
            first = {str(one.metadata["file"]): one for one in reversed(self._blocks)}
            wanted = [*first.values(), *wanted]
        for one in wanted:
            if self._may_be_written(one):
                await files.write(one.metadata["file"], one.code)
