"""`emberbox shell`: an interactive prompt on a machine, here or on a server."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from emberbox.cli.exits import Exit, run_async
from emberbox.cli.machines import show_entry
from emberbox.cli.printing import printable
from emberbox.cli.target import Target
from emberbox.config import load_settings
from emberbox.errors import ValidationFailed, VmExecutionError
from emberbox.languages import get_language
from emberbox.models import Execution, Result, SnapshotInfo
from emberbox.sdk.sandbox import AsyncSandbox

_UNFINISHED = {"python": (":", "\\", "(", "[", "{", ","), "javascript": ("{", "(", "[", ",", "\\"), "bash": ("\\",)}
_BLOCKS = {"bash": {"do", "then", "else", "{"}}


@dataclass(slots=True)
class Shell:
    """One conversation with a machine.

    Attributes:
        language: of what is typed.
        points: snapshots before each execution, newest last: what `%undo` goes back to.
    """

    sandbox: AsyncSandbox
    console: Console
    language: str
    points: list[SnapshotInfo] = field(default_factory=list)
    owned: list[AsyncSandbox] = field(default_factory=list)
    _work: asyncio.Future[Execution] | None = None
    _interrupting: asyncio.Future[None] | None = None

    async def loop(self, read: Callable[[str], str]) -> int:
        """Read and run until the end of the input; the exit code."""
        while True:
            try:
                text = await asyncio.to_thread(self._read_whole, read)
            except EOFError:
                self.console.print()
                return int(Exit.SUCCESS)
            if not text.strip():
                continue
            try:
                if text.startswith("%"):
                    if not await self._magic(text[1:]):
                        return int(Exit.SUCCESS)
                else:
                    await self._run(text)
            except VmExecutionError as error:
                self.console.print(f"[bold red]✗[/] {escape(printable(error.message))}", soft_wrap=True)
                self.console.print(f"  [cyan]→[/] {escape(printable(error.remediation))}", soft_wrap=True)
            except ValueError as error:  # quotes of a command that are not closed
                self.console.print(f"[bold red]✗[/] {escape(str(error))}")

    def _read_whole(self, read: Callable[[str], str]) -> str:
        """A line, and those that belong to it: while it is not finished, up to an empty one."""
        lines = [read(f"{self.language}> ")]
        if lines[0].startswith("%"):
            return lines[0].strip()
        while self._goes_on(lines):
            lines.append(read("... "))
        return "\n".join(lines)

    def _goes_on(self, lines: list[str]) -> bool:
        last = lines[-1].rstrip()
        if not last:
            return False
        words = last.split()
        open_end = last.endswith(_UNFINISHED.get(self.language, ("{",)))
        return open_end or len(lines) > 1 or (bool(words) and words[-1] in _BLOCKS.get(self.language, set()))

    async def _run(self, code: str) -> None:
        with contextlib.suppress(VmExecutionError):  # without it there is no undo of this one, and it runs all the same
            self.points.append(await self.sandbox.snapshot())
            while len(self.points) > _UNDO:
                await self.sandbox.delete_snapshot(self.points.pop(0))
        running = self.sandbox.run_code(
            code, self.language, on_stdout=self._stdout, on_stderr=self._stderr, on_result=self._result
        )
        self._work = asyncio.ensure_future(running)
        try:
            self._ended(await self._work)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            self.console.print("[yellow]cut short; its variables are lost[/]")
        finally:
            self._work = self._interrupting = None

    async def forget(self) -> None:
        """The machine stays, its points for `%undo` need not."""
        for point in self.points:
            with contextlib.suppress(VmExecutionError):
                await self.sandbox.delete_snapshot(point)

    def interrupt(self) -> None:
        """Ctrl-C: the first one interrupts what runs, as it would at home; the second one cuts it short."""
        if self._work is None:
            self.console.print("\n[dim]Ctrl-D leaves[/]")
        elif self._interrupting is None:
            self._interrupting = asyncio.ensure_future(self._interrupt())
        else:
            self._work.cancel()

    async def _interrupt(self) -> None:
        with contextlib.suppress(VmExecutionError):
            await self.sandbox.interrupt()

    def _stdout(self, text: str) -> None:
        self.console.out(printable(text), end="", highlight=False)

    def _stderr(self, text: str) -> None:
        self.console.print(Text(printable(text), style="yellow"), end="", soft_wrap=True)

    def _result(self, result: Result) -> None:
        shown = result.text if result.text is not None else ", ".join(result.formats())
        self.console.print(Text(printable(shown)), soft_wrap=True)

    def _ended(self, run: Execution) -> None:
        if run.error is not None:
            trace = run.error.traceback or f"{run.error.name}: {run.error.value}"
            self.console.print(Text(printable(trace.rstrip()), style="red"), soft_wrap=True)
        elif not run.succeeded:
            self.console.print(f"[red]✗[/] [dim]exit {run.exit_code} · {run.termination_reason.value}[/]")
        for note in run.notes:
            self.console.print(f"  [cyan]→[/] {escape(printable(note))}", soft_wrap=True)

    # --- commands of its own --------------------------------------------------------------------------------------

    async def _magic(self, line: str) -> bool:
        """A command of the shell itself; False when it is to end."""
        name, *args = shlex.split(line) or [""]
        if name in {"quit", "exit", "q"}:
            return False
        if name in {"help", "?"}:
            self.console.print(_HELP)
            return True
        commands: dict[str, Callable[[list[str]], Awaitable[None]]] = {
            "undo": self._checkpoints,
            "branch": self._branch,
            "files": self._files,
            "history": self._history,
            "language": self._choose,
            "snapshot": self._snapshot,
            "snapshots": self._snapshots,
            "rollback": self._rollback,
            "info": self._info,
        }
        if name in {"python", "py", "javascript", "js", "node", "typescript", "ts", "bash", "sh", "rust", "rs"}:
            name, args = "language", [name]
        if name not in commands:
            raise ValidationFailed(f"There is no command %{name}.", remediation="%help shows what there is.")
        await commands[name](args)
        return True

    async def _checkpoints(self, args: list[str]) -> None:
        """Back to before the last execution, or so many."""
        count = int(args[0]) if args and args[0].isdecimal() else 1
        if not 0 < count <= len(self.points):
            raise ValidationFailed(
                f"There are {len(self.points)} executions to take back.", remediation="%snapshots shows other points."
            )
        point = self.points[-count]
        done = await self.sandbox.rollback(point)
        del self.points[-count:]
        self.console.print(f"[green]✓[/] took back {count} ({done.rollback_time_ms:,.0f} ms)")

    async def _branch(self, args: list[str]) -> None:
        """Go on in a copy, and leave this machine as it is."""
        del args
        child = (await self.sandbox.fork(1, timeout=None))[0]
        self.owned.append(child)
        self.points.clear()
        self.console.print(f"[green]✓[/] now in {child.sandbox_id}; {self.sandbox.sandbox_id} stays as it was")
        self.sandbox = child

    async def _files(self, args: list[str]) -> None:
        """A directory."""
        entries = await self.sandbox.files.list(args[0] if args else ".")
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for entry in sorted(entries, key=lambda one: (one.type != "dir", one.name)):
            name = printable(entry.name) + ("/" if entry.type == "dir" else "")
            table.add_row(f"{entry.size:,}", Text(name, style="blue" if entry.type == "dir" else ""))
        self.console.print(table if entries else "[dim]empty[/]")

    async def _history(self, args: list[str]) -> None:
        """What was executed here."""
        limit = int(args[0]) if args and args[0].isdecimal() else 10
        for entry in reversed(await self.sandbox.history(limit=max(1, limit))):
            show_entry(self.console, entry)

    async def _choose(self, args: list[str]) -> None:
        """Another language."""
        self.language = get_language(args[0] if args else "python").config.name

    async def _snapshot(self, args: list[str]) -> None:
        """Keep this moment."""
        info = await self.sandbox.snapshot(args[0] if args else None)
        self.console.print(f"[green]✓[/] {info.snapshot_id}")

    async def _snapshots(self, args: list[str]) -> None:
        """Points to go back to."""
        del args
        for info in await self.sandbox.list_snapshots():
            self.console.print(f"{info.snapshot_id} [dim]{info.kind}[/]", Text(printable(info.name)))

    async def _rollback(self, args: list[str]) -> None:
        """To a snapshot, or the last success."""
        done = await self.sandbox.rollback(args[0] if args else "last-success")
        self.points.clear()
        self.console.print(f"[green]✓[/] {escape(printable(done.message))}")

    async def _info(self, args: list[str]) -> None:
        """The machine."""
        del args
        info, metrics = await self.sandbox.get_info(), await self.sandbox.get_metrics()
        memory = "" if metrics.memory_bytes is None else f", {metrics.memory_bytes / (1 << 20):,.0f} MiB"
        self.console.print(f"{info.sandbox_id} · {info.backend} · {info.template} · {info.state}{memory}")


_UNDO = 20
"""Executions that can be taken back one by one."""
_HELP = """[bold]%undo[/] [dim]n[/]       take the last n executions back: files, variables, processes
[bold]%branch[/]       go on in a copy; this machine stays as it is
[bold]%files[/] [dim]path[/]   list a directory
[bold]%history[/] [dim]n[/]    what was executed
[bold]%snapshot[/] [dim]name[/], [bold]%snapshots[/], [bold]%rollback[/] [dim]id[/]
[bold]%python[/], [bold]%javascript[/], [bold]%bash[/], [bold]%rust[/]   the language of what you type
[bold]%info[/], [bold]%quit[/]
A line that is not finished goes on until an empty one."""


def open_shell(target: Target, vm_id: str | None, *, language: str, template: str | None) -> None:
    """Open a prompt on a machine: the one that is named (which stays), or a new one (which ends with the prompt).
    Leaves the process."""
    console = Console(highlight=False)

    async def work() -> int:
        language_name = get_language(language).config.name
        sandbox, kept = await _machine(target, vm_id, template)
        shell = Shell(sandbox, console, language_name, owned=[] if kept else [sandbox])
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, shell.interrupt)
        try:
            console.print(
                f"[bold]{sandbox.sandbox_id}[/] on {sandbox.backend}; [bold]%help[/] for commands, Ctrl-D leaves"
            )
            return await shell.loop(_reader())
        finally:
            if shell.sandbox is sandbox and kept:
                await shell.forget()
            for owned in shell.owned:
                await owned.kill()
            await sandbox.disconnect()

    run_async(work, as_json=False)


async def _machine(target: Target, vm_id: str | None, template: str | None) -> tuple[AsyncSandbox, bool]:
    if vm_id is not None:
        return await AsyncSandbox.connect(vm_id, base_url=target.url, token=target.token), True
    if target.named:
        made = await AsyncSandbox.create(template, timeout=None, base_url=target.url, token=target.token)
        return made, False
    return await AsyncSandbox.create(template, timeout=None, settings=load_settings()), False


def _reader() -> Callable[[str], str]:
    """`input`, with the line editing and the memory of readline where there is a terminal."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (its import is what does it)
    return input
