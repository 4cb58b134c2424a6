"""`emberbox agent`: a role file, and questions to it; one, or a conversation."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack
from typing import NoReturn, Self

from anyio.from_thread import BlockingPortal, start_blocking_portal
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.syntax import Syntax
from rich.text import Text

from emberbox.agent import CommandInput, CommandOutput, CommandStatus, CommandType, Role, TerraphimAgent
from emberbox.cli.approve import terminal_approver
from emberbox.cli.exits import Exit, exit_of_error, fail, run_async
from emberbox.cli.inputs import read_input
from emberbox.cli.printing import printable
from emberbox.cli.progress import build_progress
from emberbox.cli.run import Screen
from emberbox.config import load_settings
from emberbox.errors import ValidationFailed, VmExecutionError
from emberbox.hooks.approval import Approver
from emberbox.models import CodeBlock
from emberbox.sandbox.listeners import Listeners

_EXIT_OF: dict[CommandStatus, Exit] = {
    CommandStatus.COMPLETED: Exit.SUCCESS,
    CommandStatus.NOTHING_RUN: Exit.NOTHING_RUN,
    CommandStatus.FAILED: Exit.FAILED,
    CommandStatus.TIMEOUT: Exit.TIMEOUT,
    CommandStatus.REFUSED: Exit.BLOCKED,
    CommandStatus.BLOCKED: Exit.BLOCKED,
}
_HELP = """\
A line is a question to the model (a text with code, where the role names no model).
  /run FILE   run the code of a file with a model's answer
  /history    what was said
  /reset      forget it, and begin with a fresh sandbox
  /quit       leave (or Ctrl-D); Ctrl-C stops what is under way"""


def run_agent(*, role: str, text: str | None, as_json: bool = False, execute: bool = False, yes: bool = False) -> None:
    """The command; leaves the process.

    Args:
        role: path of a role file.
        text: the one question; `-` reads it from standard input; None: a conversation.
        as_json: print one JSON document (CommandOutput), in a conversation one line for each.
        execute: the text is an answer with code to run, not a question.
        yes: every question to a person is answered with yes.
    """
    if text is None:
        _leave_with(lambda: _converse(role, as_json=as_json, yes=yes), as_json=as_json)
    run_async(lambda: _once(role, text, as_json=as_json, execute=execute, yes=yes), as_json=as_json)


async def _once(role_path: str, text: str, *, as_json: bool, execute: bool, yes: bool) -> int:
    role = Role.load(role_path)
    given = _input_of(role, read_input("-", load_settings()) if text == "-" else text, execute=execute)
    approver = terminal_approver(as_json=as_json, reads_stdin=text == "-", yes=yes)
    with _Progress() as progress:
        screen = None if as_json else AgentScreen(Console(highlight=False), progress)
        async with TerraphimAgent(role, approver=approver, progress=progress) as agent:
            output = await agent.process_command(given, screen)
    if screen is None:
        print(output.model_dump_json(indent=2))
    else:
        screen.epilogue(output)
    return int(_EXIT_OF[output.status])


def _input_of(role: Role, text: str, *, execute: bool) -> CommandInput:
    if not text.strip():
        raise ValidationFailed("The text is empty.", remediation="Ask something, or leave it out for a conversation.")
    return CommandInput(command=CommandType.EXECUTE if execute or not role.has_model else CommandType.CHAT, text=text)


def _leave_with(work: Callable[[], int], *, as_json: bool) -> NoReturn:
    """As `run_async`, for work that has an event loop in a thread of its own."""
    try:
        sys.exit(work())
    except VmExecutionError as error:
        fail(error, as_json=as_json)
    except BrokenPipeError:
        # whoever read our output has gone; nothing more is to be written, at the exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        Console(stderr=True).print("[yellow]interrupted[/]")
        sys.exit(130)


# --- a conversation -------------------------------------------------------------------------------------------------


def _converse(role_path: str, *, as_json: bool, yes: bool) -> int:
    role = Role.load(role_path)
    at_terminal = bool(sys.stdin and sys.stdin.isatty())
    approver = terminal_approver(as_json=as_json, reads_stdin=not at_terminal, yes=yes)
    # The loop has a thread of its own: sandboxes are looked after while a person thinks, and Ctrl-C reaches us here.
    with _Progress() as progress, start_blocking_portal() as portal:
        agent = portal.call(lambda: _made(role, approver, progress))
        talk = Talk(portal, agent, None if as_json else AgentScreen(Console(highlight=False), progress))
        try:
            if at_terminal and not as_json:
                talk.greet()
            for line in _lines(at_terminal=at_terminal, quiet=as_json, most=load_settings().max_input_bytes):
                if not talk.hear(line):
                    break
        finally:
            portal.call(agent.close)
    return talk.exit_code


async def _made(role: Role, approver: Approver | None, progress: _Progress) -> TerraphimAgent:
    return TerraphimAgent(role, approver=approver, progress=progress)


def _lines(*, at_terminal: bool, quiet: bool, most: int) -> Iterator[str]:
    """What a person types, or what comes through a pipe, line by line."""
    if sys.stdin is None:
        return
    if at_terminal and not quiet:
        import readline  # noqa: F401 (gives `input` its editing and its memory)
    while True:
        if not at_terminal or quiet:
            data = sys.stdin.buffer.readline(most + 1)
            if not data:
                return
            yield data.decode("utf-8", "replace")
            continue
        try:
            yield input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n/quit or Ctrl-D leaves.")


class Talk:
    """A conversation at a terminal or through a pipe.

    Args:
        portal: into the event loop's thread.
        agent: who answers.
        screen: what a person sees; None: JSON lines.
    """

    def __init__(self, portal: BlockingPortal, agent: TerraphimAgent, screen: AgentScreen | None) -> None:
        self._portal = portal
        self._agent = agent
        self._screen = screen
        self._console = screen.console if screen else Console(stderr=True, highlight=False)
        self.exit_code = int(Exit.SUCCESS)
        """Of the last command."""

    def greet(self) -> None:
        """Say who is there."""
        role = self._agent.role
        model = f"{role.llm_model} ({role.llm_provider})" if role.has_model else "no model"
        self._console.print(f"[bold]{escape(printable(role.name))}[/] · {escape(model)} · [dim]/help says more[/]")

    def hear(self, line: str) -> bool:
        """Do what a line says; False: leave."""
        line = line.strip()
        if not line:
            return True
        word, _, rest = line.partition(" ")
        if word in {"/quit", "/exit"}:
            return False
        if word == "/help":
            self._console.print(_HELP, markup=False)
        elif word == "/history":
            self._history()
        elif word == "/reset":
            self._portal.call(self._agent.reset)
            self._console.print("[dim]forgotten; the next code runs in a fresh sandbox[/]")
        elif word == "/run":
            self._command(lambda: _input_of(self._agent.role, read_input(rest.strip(), load_settings()), execute=True))
        elif line.startswith("/"):
            self._console.print(f"[red]✗[/] there is no {escape(printable(word))}; /help lists what there is")
        else:
            self._command(lambda: _input_of(self._agent.role, line, execute=False))
        return True

    def _command(self, read: Callable[[], CommandInput]) -> None:
        try:
            given = read()
            future = self._portal.start_task_soon(self._agent.process_command, given, self._screen)
            try:
                output = future.result()
            except KeyboardInterrupt:
                future.cancel()
                with contextlib.suppress(CancelledError):
                    future.result()
                self._console.print("\n[yellow]interrupted[/]")
                self.exit_code = 130
                return
        except VmExecutionError as error:
            self._failed(error)
            return
        self.exit_code = int(_EXIT_OF[output.status])
        if self._screen is None:
            print(output.model_dump_json(), flush=True)
        else:
            self._screen.epilogue(output)

    def _failed(self, error: VmExecutionError) -> None:
        self.exit_code = int(exit_of_error(error))
        if self._screen is None:
            print(json.dumps({"error": error.to_dict()}), flush=True)
            return
        self._console.print(f"[bold red]✗[/] {escape(printable(error.message))}", soft_wrap=True)
        self._console.print(f"  [cyan]→[/] {escape(printable(error.remediation))}", soft_wrap=True)

    def _history(self) -> None:
        for message in self._agent.conversation:
            calls = [call["function"]["arguments"] for call in message.get("tool_calls", ())]
            text = "\n".join([str(message.get("content") or ""), *calls]).strip()
            self._console.print(f"[bold]{message['role']}[/]", Text(printable(text)), sep="\n", soft_wrap=True)


# --- what a person sees ---------------------------------------------------------------------------------------------


class _Progress:
    """Progress of the building of an image, shown from its first step until code runs."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._show: Callable[[str, float | None], None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, message: str, part: float | None) -> None:
        if self._show is None:
            self._show = self._stack.enter_context(build_progress("image", Console(stderr=True)))
        self._show(message, part)

    def close(self) -> None:
        """Take it off the screen."""
        self._show = None
        self._stack.close()


class AgentScreen(Screen):
    """Listens to an agent: what the model says, the code that runs, its output as it comes, how it ends."""

    def __init__(self, console: Console, progress: _Progress) -> None:
        super().__init__(console, threshold=0.0)
        self._progress = progress

    async def model_answered(self, text: str, *, final: bool) -> None:
        """Show what it said. (The last answer is shown when all is done.)"""
        if text.strip() and not final:
            self.console.print(Text(printable(text.strip()), style="dim"), soft_wrap=True)

    async def taken_back(self, snapshot_id: str) -> None:
        """Say that files and variables are as before."""
        self.console.print(f"[magenta]↶[/] [dim]back to before the failed code ({escape(snapshot_id)})[/]")

    async def block_begins(self, index: int, block: CodeBlock) -> Listeners:
        """Head line, and the code where it does not stand in the model's text."""
        self._progress.close()
        listeners = await super().block_begins(index, block)
        if block.metadata.get("tool") is not None:
            code = printable(block.code.rstrip("\n"))
            self.console.print(Syntax(code, block.language, background_color="default", word_wrap=True))
            self.console.print("[dim]┄┄┄[/]")
        return listeners

    def epilogue(self, output: CommandOutput) -> None:
        """The answer, and what else there is to know."""
        console = self.console
        if output.status is CommandStatus.BLOCKED:
            for error in output.errors[-1:]:
                console.print(f"[red]✗[/] {escape(printable(error.message))}", soft_wrap=True)
                console.print(f"  [cyan]→[/] {escape(printable(error.remediation))}", soft_wrap=True)
        elif output.rounds and output.text.strip():
            text = printable(output.text.strip())
            console.print(
                Markdown(text, hyperlinks=False) if console.is_terminal else Text(text),
                soft_wrap=not console.is_terminal,
            )
        if output.status is CommandStatus.FAILED and output.errors and output.errors[-1].block is None:
            console.print(f"[red]✗[/] {escape(printable(output.errors[-1].message))}", soft_wrap=True)
        if output.bound is not None:
            limit = "max_rounds" if output.bound == "rounds" else "max_repairs"
            console.print(f"  [cyan]→[/] the limit {limit} of the role was reached", soft_wrap=True)
        for note in output.notes:
            console.print(f"  [cyan]→[/] {escape(printable(note))}", soft_wrap=True)
        console.print(f"[dim]{self._summary(output)}[/]")

    @staticmethod
    def _summary(output: CommandOutput) -> str:
        words = [output.status.value, f"{len(output.execution_results)} ran"]
        if output.errors:
            words.append(f"{len(output.errors)} refused")
        if output.repairs:
            words.append(f"{output.repairs} repair{'s' * (output.repairs != 1)}")
        if output.usage is not None:
            words.append(f"{output.usage.total_tokens:,} tokens")
        return " · ".join([*words, f"{output.duration_ms / 1000:.1f} s"])
