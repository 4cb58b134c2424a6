"""Machines and sessions of a server: list, make, end, roll back, branch, look at what ran."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime

from pydantic import BaseModel
from rich.console import Console
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from emberbox.cli.printing import printable, write_output
from emberbox.cli.remote import on_server, part
from emberbox.cli.target import Target
from emberbox.languages import resolve
from emberbox.models import CommandHistoryEntry, RollbackRequest, RollbackResponse, SnapshotInfo
from emberbox.models.service import (
    KeepRequest,
    PointRequest,
    SessionCommand,
    SessionInfo,
    SessionList,
    SessionOutput,
    SnapshotList,
    VmCreateRequest,
    VmInstance,
    VmList,
)
from emberbox.sdk.deadlines import EXECUTION_SECONDS
from emberbox.sdk.transport import HttpServer, made

_COLOURS = {"ready": "green", "running": "cyan", "paused": "yellow", "stopped": "dim", "failed": "red"}


def _console() -> Console:
    return Console(highlight=False)


def _answer(model: BaseModel, text: str, *, as_json: bool) -> None:
    if as_json:
        print(model.model_dump_json(indent=2))
    else:
        _console().print(text, soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=column in {"machine", "snapshot", "session"})
    return table


def _when(moment: datetime) -> str:
    return f"{moment.astimezone():%m-%d %H:%M:%S}"


def _own_name(name: str, of: str) -> str:
    """A name that somebody gave."""
    return "" if name == of else name


def _status(status: str) -> Text:
    return Text(status, style=_COLOURS.get(status, ""))


# --- machines ---------------------------------------------------------------------------------------------------------


def list_vms(target: Target, *, as_json: bool) -> None:
    """All machines that the token may see; leaves the process."""

    async def work(server: HttpServer) -> None:
        found = await server.get(VmList, "/api/vms")
        if as_json:
            print(found.model_dump_json(indent=2))
        elif not found.vms:
            _console().print("There are no machines. `emberbox vms create` makes one.")
        else:
            table = _table("machine", "status", "name", "type", "agent", "made", "last used")
            for vm in found.vms:
                name, agent = Text(printable(_own_name(vm.name, vm.id))), Text(printable(vm.agent_id))
                made, used = _when(vm.created_at), _when(vm.last_activity)
                table.add_row(vm.id, _status(vm.status), name, Text(printable(vm.vm_type)), agent, made, used)
            _console().print(table)

    on_server(target, work, as_json=as_json)


def create_vm(
    target: Target,
    *,
    template: str | None,
    name: str | None,
    agent: str | None,
    timeout: float | None,
    snapshot: str | None,
    as_json: bool,
) -> None:
    """Make a machine; leaves the process."""

    async def work(server: HttpServer) -> None:
        request = made(
            VmCreateRequest,
            vm_type=template,
            vm_name=name,
            agent_id=agent,
            timeout_seconds=timeout,
            snapshot_id=snapshot,
        )
        vm = await server.post(VmInstance, "/api/vms", request, seconds=EXECUTION_SECONDS)
        _answer(vm, f"[bold green]✓[/] {vm.id} is ready. `emberbox shell {vm.id}` opens it.", as_json=as_json)

    on_server(target, work, as_json=as_json)


def kill_vm(target: Target, vm_id: str, *, as_json: bool) -> None:
    """End a machine; leaves the process."""

    async def work(server: HttpServer) -> None:
        answer = await server.request("DELETE", f"/api/vms/{part(vm_id)}")
        vm = VmInstance.model_validate_json(answer.content)
        _answer(vm, f"[bold green]✓[/] {vm.id} has ended.", as_json=as_json)

    on_server(target, work, as_json=as_json)


def rollback(target: Target, vm_id: str, to: str, *, paths: Sequence[str], keep_current: bool, as_json: bool) -> None:
    """Take a machine back; leaves the process."""

    async def work(server: HttpServer) -> None:
        request = RollbackRequest(target=to, paths=list(paths) or None, create_pre_rollback_snapshot=keep_current)
        path = f"/api/vms/{part(vm_id)}/rollback"
        done = await server.post(RollbackResponse, path, request, seconds=EXECUTION_SECONDS)
        text = f"[bold green]✓[/] {printable(done.message)} ({done.rollback_time_ms:,.0f} ms)"
        if done.executions_undone:
            text += f"\n  undone: {', '.join(done.executions_undone)}"
        if done.pre_rollback_snapshot_id:
            text += f"\n  as it was before: {done.pre_rollback_snapshot_id}"
        _answer(done, text, as_json=as_json)

    on_server(target, work, as_json=as_json)


def branch(target: Target, vm_id: str, point: str, *, timeout: float | None, as_json: bool) -> None:
    """A new machine that goes on from a point of another one; leaves the process."""

    async def work(server: HttpServer) -> None:
        wanted = PointRequest(point=point, timeout_seconds=timeout).model_dump(mode="json")
        vm = await server.post(VmInstance, f"/api/vms/{part(vm_id)}/branch", wanted, seconds=EXECUTION_SECONDS)
        _answer(vm, f"[bold green]✓[/] {vm.id} goes on from {printable(point)} of {vm_id}.", as_json=as_json)

    on_server(target, work, as_json=as_json)


def logs(target: Target, vm_id: str, *, limit: int, failures: bool, as_json: bool) -> None:
    """What was executed in a machine, with its output, oldest first; leaves the process."""

    async def work(server: HttpServer) -> None:
        path = f"/api/vms/{part(vm_id)}/history"
        found = await server.history(path, limit, failures_only=failures)
        if as_json:
            print(found.model_dump_json(indent=2))
            return
        console = _console()
        for entry in reversed(found.history):
            show_entry(console, entry)
        if not found.history:
            console.print("Nothing was executed there" + (" that failed." if failures else "."))

    on_server(target, work, as_json=as_json)


def show_entry(console: Console, entry: CommandHistoryEntry) -> None:
    """Code and output of one execution."""
    outcome = entry.state if entry.state != "finished" else f"exit {entry.exit_code}"
    colour = "green" if entry.success else "red"
    head = f"[{colour}]{outcome}[/] [dim]{_when(entry.executed_at)} · {entry.execution_id} · {entry.language}[/]"
    console.print(Rule(head, style="dim", align="left"))
    console.print(Syntax(printable(entry.command), resolve(entry.language) or "text", background_color="default"))
    for text, style in ((entry.stdout, ""), (entry.stderr, "yellow"), (entry.error or "", "red")):
        if text:
            console.print(Text(printable(text.rstrip("\n")), style=style), soft_wrap=True)


# --- snapshots --------------------------------------------------------------------------------------------------------


def create_snapshot(
    target: Target, vm_id: str, name: str | None, *, keep: bool, description: str, as_json: bool
) -> None:
    """Keep a machine as it is now; leaves the process."""

    async def work(server: HttpServer) -> None:
        path = f"/api/vms/{part(vm_id)}/checkpoint"
        wanted = KeepRequest(name=name, keep=keep, description=description)
        info = await server.post(SnapshotInfo, path, wanted, seconds=EXECUTION_SECONDS)
        size = info.size_bytes / (1 << 20)
        _answer(info, f"[bold green]✓[/] {info.snapshot_id} ({size:,.1f} MiB)", as_json=as_json)

    on_server(target, work, as_json=as_json)


def list_snapshots(target: Target, vm_id: str, *, as_json: bool) -> None:
    """Snapshots of a machine, oldest first; leaves the process."""

    async def work(server: HttpServer) -> None:
        found = await server.get(SnapshotList, f"/api/vms/{part(vm_id)}/snapshots")
        if as_json:
            print(found.model_dump_json(indent=2))
        elif not found.snapshots:
            _console().print(f"There are none. `emberbox snapshot create {vm_id}` takes one.")
        else:
            table = _table("snapshot", "kind", "name", "good", "taken", "size", "goes on from")
            for one in found.snapshots:
                good = "[green]✓[/]" if one.good else "[red]✗[/]"
                size = f"{one.size_bytes / (1 << 20):,.1f} MiB"
                name = Text(printable(_own_name(one.name, one.snapshot_id)))
                table.add_row(one.snapshot_id, one.kind, name, good, _when(one.created_at), size, one.parent_id or "")
            _console().print(table)

    on_server(target, work, as_json=as_json)


# --- sessions ---------------------------------------------------------------------------------------------------------


def list_sessions(target: Target, *, as_json: bool) -> None:
    """Sessions that the token may see; leaves the process."""

    async def work(server: HttpServer) -> None:
        found = await server.get(SessionList, "/sessions")
        if as_json:
            print(found.model_dump_json(indent=2))
        elif not found.sessions:
            _console().print("There are no sessions.")
        else:
            table = _table("session", "status", "machine", "type", "agent", "snapshots", "last used")
            for one in found.sessions:
                agent, used = Text(printable(one.agent_id)), _when(one.last_activity)
                table.add_row(
                    one.name, _status(one.status), one.vm_id, Text(printable(one.vm_type)), agent,
                    str(one.snapshots), used,
                )  # fmt: skip
            _console().print(table)

    on_server(target, work, as_json=as_json)


def run_in_session(target: Target, name: str, command: str, *, as_json: bool) -> None:
    """Run a command in a session's shell; its output and exit status are the answer. Leaves the process."""

    async def work(server: HttpServer) -> int:
        path, wanted = f"/sessions/{part(name)}/execute", SessionCommand(command=command)
        done = await server.post(SessionOutput, path, wanted, seconds=EXECUTION_SECONDS)
        if as_json:
            print(done.model_dump_json(indent=2))
        else:
            write_output(done.stdout, sys.stdout)
            write_output(done.stderr, sys.stderr)
        return done.exit_code

    on_server(target, work, as_json=as_json)


def close_session(target: Target, name: str, *, as_json: bool) -> None:
    """End a session with its machine; leaves the process."""

    async def work(server: HttpServer) -> None:
        answer = await server.request("DELETE", f"/sessions/{part(name)}")
        info = SessionInfo.model_validate_json(answer.content)
        _answer(info, f"[bold green]✓[/] Session {info.name} has ended.", as_json=as_json)

    on_server(target, work, as_json=as_json)
