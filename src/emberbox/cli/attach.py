"""`emberbox attach` and `emberbox approve`: follow a machine; answer questions."""

from __future__ import annotations

import asyncio
import sys

from rich.console import Console
from rich.markup import escape
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from emberbox.cli.approve import Prompt
from emberbox.cli.printing import printable
from emberbox.cli.remote import on_server, part
from emberbox.cli.target import Target
from emberbox.errors import ValidationFailed
from emberbox.models import ApprovalRequest
from emberbox.models.service import ApprovalAnswer, ApprovalList, Done, FollowedEvent
from emberbox.sdk.transport import HttpServer, ServerEvent, parsed_text


def attach(target: Target, vm_id: str, *, as_json: bool) -> None:
    """Show what is executed in a machine until it ends, or until Ctrl-C; leaves the process."""
    console = Console(highlight=False)

    async def work(server: HttpServer) -> None:
        async with server.events(f"/api/vms/{part(vm_id)}/events", method="GET") as events:
            if not as_json:
                Console(stderr=True, highlight=False).print(f"[dim]following {escape(vm_id)}; Ctrl-C leaves[/]")
            async for event in events:
                if not _show(event, console, as_json=as_json):
                    return

    on_server(target, work, as_json=as_json)


def _show(event: ServerEvent, console: Console, *, as_json: bool) -> bool:
    """One event; False when there will be no more."""
    told = parsed_text(FollowedEvent, event.data)
    if as_json:
        print(told.model_dump_json(exclude_none=True), flush=True)
    elif told.kind == "started":
        console.print(Rule(f"[dim]{told.execution_id}[/]", style="cyan", align="left"))
    elif told.kind == "stdout":
        console.out(printable(told.content), end="", highlight=False)
    elif told.kind == "stderr":
        console.print(Text(printable(told.content), style="yellow"), end="", soft_wrap=True)
    elif told.kind == "result":
        console.print("[magenta]⇒[/]", Text(printable(told.content)), soft_wrap=True)
    elif told.kind == "missed":
        console.print(f"[yellow]… {told.content} events were missed: this reader was too slow[/]")
    elif told.kind == "closed":
        console.print("[dim]the machine has ended[/]")
    else:
        good = told.kind == "ended" and told.exit_code == 0
        word = f"exit {told.exit_code}" if told.exit_code is not None else told.kind
        spent = "" if told.duration_ms is None else f" · {told.duration_ms:,.0f} ms"
        console.print(f"{'[green]✓[/]' if good else '[red]✗[/]'} [dim]{word}{spent}[/]")
        if told.content:
            console.print(Text(printable(told.content), style="red"), soft_wrap=True)
    return told.kind != "closed"


def approve(
    target: Target, approval_id: str | None, *, answer: tuple[bool, str, str | None] | None, as_json: bool
) -> None:
    """Answer one question, or all that wait one after the other; without a terminal they are listed. Leaves the
    process.

    `answer`: yes or no, the reason, and the code to run instead.
    """

    async def work(server: HttpServer) -> None:
        if approval_id is not None and answer is not None:
            said, reason, edited = answer
            await _send(server, approval_id, ApprovalAnswer(approve=said, reason=reason, edited_code=edited))
            if as_json:
                print(Done().model_dump_json())
            return
        waiting = (await server.get(ApprovalList, "/api/approvals")).approvals
        if approval_id is not None:
            waiting = [one for one in waiting if one.approval_id == approval_id]
            if not waiting:
                raise ValidationFailed(
                    f"No question {approval_id!r:.80} waits.", remediation="`emberbox approve` shows what does."
                )
        if as_json:
            print(ApprovalList(approvals=waiting, total=len(waiting)).model_dump_json(indent=2))
        elif not waiting:
            Console(highlight=False).print("Nothing waits for an answer.")
        elif sys.stdin.isatty():
            await _ask_all(server, waiting)
        else:
            Console(highlight=False).print(_table(waiting))

    on_server(target, work, as_json=as_json)


async def _send(server: HttpServer, approval_id: str, answer: ApprovalAnswer) -> None:
    await server.post(Done, f"/api/approvals/{part(approval_id)}", answer)


async def _ask_all(server: HttpServer, waiting: list[ApprovalRequest]) -> None:
    prompt = Prompt(Console(highlight=False), input)
    for question in waiting:
        said = await asyncio.to_thread(prompt.ask, question)
        await _send(server, question.approval_id, ApprovalAnswer(approve=said.approve, edited_code=said.edited_code))


def _table(waiting: list[ApprovalRequest]) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for column in ("question", "agent", "machine", "until", "what"):
        table.add_column(column, no_wrap=column == "question")
    for one in waiting:
        until = f"{one.expires_at.astimezone():%H:%M:%S}"
        agent = Text(printable(one.agent_id))
        table.add_row(one.approval_id, agent, one.vm_id or "", until, Text(printable(one.prompt)))
    return table
