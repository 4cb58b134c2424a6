"""`emberbox run`: a model's answer in, its blocks executed."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.rule import Rule
from rich.text import Text

from emberbox.cli.approve import terminal_approver
from emberbox.cli.exits import Exit, exit_of_run, run_async
from emberbox.cli.inputs import read_input, with_hooks
from emberbox.cli.printing import printable
from emberbox.cli.progress import build_progress
from emberbox.config import load_settings
from emberbox.engine import Engine
from emberbox.errors import PolicyBlocked, ValidationFailed, VmExecutionError
from emberbox.models import CodeBlock, Execution, ExecutionIntent, ParseExecuteResponse, Result
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sandbox.listeners import Listeners


@dataclass(frozen=True, slots=True)
class RunOptions:
    file: str
    as_json: bool
    dry_run: bool
    threshold: float | None
    timeout: float | None
    template: str | None
    save: Path | None = None
    hooks: Sequence[str] = ()
    yes: bool = False


def run_answer(options: RunOptions) -> None:
    """The command; leaves the process."""
    run_async(lambda: _run(options), as_json=options.as_json)


async def _run(options: RunOptions) -> int:
    settings = with_hooks(load_settings(), options.hooks)
    text = read_input(options.file, settings)
    threshold = settings.auto_execute_threshold if options.threshold is None else options.threshold
    screen = None if options.as_json else Screen(Console(highlight=False), threshold)
    approver = terminal_approver(as_json=options.as_json, reads_stdin=options.file == "-", yes=options.yes)
    async with Engine(settings, approver=approver) as engine:
        blocks, intent = engine.extractor.read(text)
        if screen:
            screen.overview(options.file, blocks, intent)
        if options.dry_run:
            _answer(ParseExecuteResponse(code_blocks=blocks, intent=intent), screen)
            return int(Exit.SUCCESS)

        sessions: list[SandboxInstance] = []

        async def open_sandbox() -> SandboxInstance:
            with build_progress("image", Console(stderr=True)) as progress:
                sessions.append(await engine.create_sandbox(options.template, progress=progress))
            return sessions[0]

        results, errors = await engine.run_answer(
            blocks, open_sandbox, threshold=threshold, timeout=options.timeout, listener=screen
        )
        response = ParseExecuteResponse(code_blocks=blocks, intent=intent, execution_results=results, errors=errors)
        if screen:
            screen.summary(response, sessions[0] if sessions else None)
        if options.save is not None:
            saved = save_results(response, options.save)
            if screen:
                screen.saved(saved)
    return _answer(response, screen)


def _answer(response: ParseExecuteResponse, screen: Screen | None) -> int:
    if screen is None:
        print(response.model_dump_json(indent=2))
    return int(exit_of_run(response.execution_results, response.errors))


class Screen:
    """What a person sees. Listens to the engine as the blocks run."""

    def __init__(self, console: Console, threshold: float) -> None:
        self.console = console
        self.threshold = threshold
        self.names: dict[int, str] = {}
        self._open_line = False

    def overview(self, source: str, blocks: list[CodeBlock], intent: ExecutionIntent) -> None:
        """The blocks that were found, in the order of the text."""
        from rich.table import Table

        self.console.print(
            f"[bold]{escape(source)}[/]: {len(blocks)} code block{'s' * (len(blocks) != 1)}, "
            f"intent [bold]{intent.suggested_action}[/] ({intent.confidence:.2f})"
        )
        if not blocks:
            return
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=True)
        for column in ("block", "line", "language", "confidence", "verdict", "begins with"):
            right = column in ("block", "line", "confidence")
            if column == "begins with":
                table.add_column(column, no_wrap=True, overflow="ellipsis", ratio=1)
            else:
                table.add_column(column, justify="right" if right else "left", min_width=len(column))
        order = sorted(range(len(blocks)), key=lambda i: blocks[i].start_pos)
        for number, index in enumerate(order, 1):
            block = blocks[index]
            self.names[index] = str(number)
            runs = block.execution_confidence >= self.threshold
            table.add_row(
                str(number),
                str(block.metadata.get("line", "")),
                Text(printable(block.language)),
                f"{block.execution_confidence:.2f}",
                "[green]run[/]" if runs else f"[dim]skip (below {self.threshold:.2f})[/]",
                Text(_first_line(block.code), style="dim"),
            )
        self.console.print(table)
        runs = any(block.execution_confidence >= self.threshold for block in blocks)
        if runs and intent.suggested_action != "auto-execute":
            says = "leaves open whether to run it" if intent.suggested_action == "ask" else "only shows code"
            self.console.print(
                f"[dim]The text itself {says} (intent {intent.suggested_action}); you asked to, with `run`, so what is"
                " sure enough to be meant runs. --dry-run only shows.[/]",
                soft_wrap=True,
            )

    def _nothing(self, blocks: list[CodeBlock]) -> None:
        """Why nothing was run, and how it runs all the same."""
        if not blocks:
            self.console.print("Nothing was run: there is no code in the text.")
            return
        self.console.print("Nothing was run: no block is sure enough to be meant. [cyan]--all[/] runs them anyway.")
        for index in sorted(range(len(blocks)), key=lambda i: blocks[i].start_pos)[:_MOST_REASONS]:
            reason = escape(printable(_against(blocks[index])))
            self.console.print(f"  block {self.names.get(index, index + 1)}: {reason}", soft_wrap=True)

    async def block_begins(self, index: int, block: CodeBlock) -> Listeners:
        """Head line; then whatever it prints, as it comes."""
        self._head(index, block.language, "cyan")
        return Listeners(self._stdout, self._stderr, self._result)

    def _head(self, index: int, language: str, colour: str) -> None:
        self.console.print(
            Rule(
                f"[bold]block {self.names.get(index, index + 1)}[/] · {escape(printable(language))}",
                style=colour,
                align="left",
            )
        )

    def _at_line_start(self) -> None:
        """What the code printed last may not have ended its line."""
        if self._open_line:
            self._open_line = False
            self.console.print()

    def _stdout(self, text: str) -> None:
        self._open_line = not text.endswith("\n")
        self.console.out(printable(text), end="", highlight=False)

    def _stderr(self, text: str) -> None:
        self._open_line = not text.endswith("\n")
        self.console.print(Text(printable(text), style="yellow"), end="", soft_wrap=True)

    def _result(self, result: Result) -> None:
        self._at_line_start()
        if result.png is not None:
            size = len(result.png) * 3 // 4
            self.console.print(f"[magenta]◆ figure: PNG, {size:,} bytes[/]")
        elif result.text is not None:
            mark = "⇒" if result.is_main_result else "◆"
            gap = "\n" if "\n" in result.text else " "
            self.console.print(f"[magenta]{mark}[/]", Text(printable(result.text)), sep=gap, soft_wrap=True)

    async def block_ran(self, index: int, execution: Execution) -> None:
        """Error, exit code, duration."""
        del index
        self._at_line_start()
        if execution.error is not None:
            trace = execution.error.traceback or f"{execution.error.name}: {execution.error.value}"
            self.console.print(Text(printable(trace.rstrip()), style="red"), soft_wrap=True)
        good = execution.succeeded
        reason = execution.termination_reason
        words = [f"exit {execution.exit_code}", f"{execution.duration_ms:,.0f} ms"]
        if reason != "completed":
            words.append(reason.value)
        if not execution.context_survived:
            words.append("its variables are lost")
        mark = "[green]✓[/]" if good else "[red]✗[/]"
        self.console.print(f"{mark} [dim]{' · '.join(words)}[/]")
        for note in execution.notes:
            self.console.print(f"  [cyan]→[/] {escape(printable(note))}", soft_wrap=True)

    async def block_refused(self, index: int, error: VmExecutionError) -> None:
        """Why a block was not run."""
        blocked = isinstance(error, PolicyBlocked)
        self._head(index, "blocked by policy" if blocked else "not run", "red")
        self.console.print(f"[red]✗[/] {escape(printable(error.message))}", soft_wrap=True)
        self.console.print(f"  [cyan]→[/] {escape(printable(error.remediation))}", soft_wrap=True)

    def saved(self, paths: list[Path]) -> None:
        for path in paths:
            self.console.print(f"[magenta]◆[/] saved {escape(str(path))}", soft_wrap=True)

    def summary(self, response: ParseExecuteResponse, session: SandboxInstance | None) -> None:
        """The last line: how many ran where."""
        ran, refused = len(response.execution_results), len(response.errors)
        self.console.print(Rule(style="dim"))
        if session is None and not refused:
            self._nothing(response.code_blocks)
            return
        code = exit_of_run(response.execution_results, response.errors)
        words = [f"{ran} ran", f"{refused} refused"] if refused else [f"{ran} ran"]
        where = f" in [bold]{session.machine.backend}[/] (template {session.image.name})" if session else ""
        colour = "green" if code is Exit.SUCCESS else "red"
        self.console.print(f"[bold {colour}]{', '.join(words)}[/]{where}")


_MOST_REASONS = 10


def _against(block: CodeBlock) -> str:
    """The weightiest reason against running a block, with the words that it rests on."""
    why = block.metadata.get("why", ())
    if not why:
        return "not sure enough"
    reason = min(why, key=lambda entry: (entry.get("cap", 1.0), entry["weight"]))
    return f"{reason['reason']} ({reason['detail']})" if reason.get("detail") else str(reason["reason"])


def save_results(response: ParseExecuteResponse, folder: Path) -> list[Path]:
    """Write figures and other rich results as files, named by execution and position.

    Raises:
        ValidationFailed: the folder cannot be written.
    """
    saved = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, run in enumerate(response.execution_results, 1):
            for position, result in enumerate(run.results, 1):
                for suffix, data in _files_of(result):
                    path = folder / f"execution-{number}-result-{position}.{suffix}"
                    path.write_bytes(data)
                    saved.append(path)
    except OSError as exc:
        raise ValidationFailed(f"Cannot save results in {folder}: {exc.strerror}.", remediation=_WRITABLE) from exc
    return saved


_WRITABLE = "Name a folder that you may write to."


def _files_of(result: Result) -> Iterator[tuple[str, bytes]]:
    for suffix in ("png", "jpeg", "pdf"):
        encoded = getattr(result, suffix)
        if encoded is not None:
            with contextlib.suppress(ValueError):  # a guest may send anything under this name
                yield suffix, base64.b64decode(encoded, validate=True)
    for suffix, text in (("svg", result.svg), ("html", result.html), ("md", result.markdown), ("tex", result.latex)):
        if text is not None:
            yield suffix, text.encode("utf-8", "replace")


def _first_line(code: str) -> str:
    line = next((line for line in code.splitlines() if line.strip()), "").strip()
    return printable(line[:48] + ("…" if len(line) > 48 else ""))
