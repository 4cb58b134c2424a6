"""Asking the person at the terminal."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.text import Text

from emberbox.cli.printing import printable
from emberbox.hooks.approval import Approver
from emberbox.languages import LANGUAGES, resolve
from emberbox.models import ApprovalRequest, ApprovalResponse


def terminal_approver(*, as_json: bool, reads_stdin: bool, yes: bool = False) -> Approver | None:
    """Who can be asked: the person at the terminal, if there is one; None for scripts, where nobody is a no. With `yes`
    the person has answered every question already."""
    if yes:
        return lambda _: True
    if as_json or reads_stdin or not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    return Prompt(Console(stderr=True, highlight=False), input).ask


class Prompt:
    """Questions on a terminal.

    Args:
        console: where they are shown.
        read: gives a line that the person typed.
    """

    def __init__(self, console: Console, read: Callable[[str], str]) -> None:
        self._console = console
        self._read = read

    def ask(self, request: ApprovalRequest) -> ApprovalResponse:
        """Show what it is about and read the answer. Called in a thread; the manager sets the deadline."""
        console, language = self._console, resolve(request.language or "")
        console.print(
            Panel(Text(printable(request.prompt)), title=f"{escape(request.hook)} asks", border_style="yellow")
        )
        if request.stage == "pre_tool":
            from rich.syntax import Syntax

            console.print(Syntax(printable(request.code), language or "text", line_numbers=True))
        edited: str | None = None
        while True:
            try:
                answer = self._read("Go on? [y]es, [n]o, [e]dit: ").strip().lower()
            except EOFError:
                answer = "n"
            if answer in {"y", "yes"}:
                return self._response(request, approve=True, edited=edited)
            if answer in {"n", "no"}:
                return self._response(request, approve=False, edited=None)
            if answer in {"e", "edit"}:
                edited = self._edit(request, edited) or edited

    def _edit(self, request: ApprovalRequest, edited: str | None) -> str | None:
        language = resolve(request.language or "")
        suffix = ".txt" if language is None else LANGUAGES[language].config.file_extension
        text = edited if edited is not None else request.code
        import click

        try:
            changed = click.edit(text, extension=suffix)
        except click.ClickException as exc:
            self._console.print(f"[red]✗[/] {escape(exc.format_message())} Set EDITOR to your editor.")
            return None
        if changed is not None:
            self._console.print("[dim]edited; y runs it as it is now[/]")
        return changed

    @staticmethod
    def _response(request: ApprovalRequest, *, approve: bool, edited: str | None) -> ApprovalResponse:
        try:
            who = getpass.getuser()
        except (OSError, KeyError):
            who = "terminal"
        return ApprovalResponse(
            approval_id=request.approval_id,
            approve=approve,
            edited_code=None if edited == request.code else edited,
            by=who,
        )
