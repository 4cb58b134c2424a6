"""What a block defines and what it needs from outside: names, files, a person who types, a browser, a project.

The languages' own analyses are in `needs_python`, `needs_javascript` and `needs_bash`. What they cannot decide is no
need: a block is held back for what it certainly lacks, not for what is hard to read.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from emberbox.models import CodeBlock

MAX_NAMES = 200
"""Names of one block that are remembered; a program that defines more is no draft of another one."""


@dataclass(frozen=True)
class Needs:
    """What one block has and lacks.

    Attributes:
        defines: names that exist once it has run.
        functions: those of them that are functions or classes.
        names: names that it uses and does not define, in the order of the text.
        files: files that it reads and does not make.
        makes: files that it makes.
        acts: it does more than to define: calls, loops, conditions.
        waits: words with which it waits for somebody to type.
        method: a function that takes `self`, outside of a class.
        browser: names that only a browser has.
        tests: names that only a framework for tests has.
        packages: libraries that belong into a project of their own.
        unknown: modules that neither the language, the image nor everybody's knowledge has.
        machine: a command that is about the reader's own machine, repository or service.
        uses: all names that it takes from elsewhere, those too that an interpreter would import by itself.
        silent: it only imports, defines and assigns, so nothing of it can be seen.
        data: it only gives names to literals.
        changes: it is a command that changes a file itself.
    """

    defines: frozenset[str] = frozenset()
    functions: frozenset[str] = frozenset()
    names: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    makes: frozenset[str] = frozenset()
    acts: bool = True
    waits: str = ""
    method: str = ""
    browser: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    machine: str = ""
    uses: frozenset[str] = frozenset()
    silent: bool = False
    data: bool = False
    changes: bool = False


NOTHING = Needs()


def word_set(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())


@dataclass
class Known:
    """What the blocks so far have defined.

    Attributes:
        runnable: (language, name) of what blocks that run define.
        held: the same of those that do not.
        files: files that blocks make, or that are written because the text names them.
        continues: there is more than the text tells: the sandbox was used before.
    """

    runnable: set[tuple[str, str]] = field(default_factory=set)
    held: set[tuple[str, str]] = field(default_factory=set)
    files: set[str] = field(default_factory=set)
    continues: bool = False

    def remember(self, block: CodeBlock, threshold: float) -> None:
        """Takes note of one block, which runs if it reaches the threshold."""
        names = {(block.language, name) for name in block.metadata.get("defines", ())}
        if block.execution_confidence >= threshold:
            self.runnable |= names
            self.held -= names
        else:
            self.held |= names - self.runnable
        self.files.update(block.metadata.get("makes", ()))
        if "file" in block.metadata:
            self.files |= {block.metadata["file"], block.metadata["file"].rpartition("/")[2]}

    def copy(self) -> Known:
        """The same, to be added to."""
        return Known(set(self.runnable), set(self.held), set(self.files), self.continues)
