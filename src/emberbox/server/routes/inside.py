"""/api/vms/{id}/files and /commands: what is inside a machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel

from emberbox.models import CommandResult, EntryInfo
from emberbox.models.base import GuestPath
from emberbox.models.service import (
    CommandRequest,
    CommandStarted,
    Done,
    EntryList,
    KillResponse,
    MadeDir,
    PathRequest,
    ProcessList,
    RenameRequest,
    StdinRequest,
)
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sandbox.listeners import Listeners
from emberbox.server import bounds
from emberbox.server.admission import AdmittingRoute, Executes
from emberbox.server.dependencies import SSE, Call
from emberbox.server.error_handlers import ClientDisconnected
from emberbox.server.routes.sandboxes import decoded, used
from emberbox.server.streams import Outbox, PatientStream, answer, long_answer

router = APIRouter(prefix="/api/vms/{vm_id}", tags=["files and commands"], route_class=AdmittingRoute)
PathInQuery = Annotated[
    GuestPath,
    Query(
        description="in the machine; a relative one starts in its work directory. A byte that is not UTF-8 is U+0000 "
        "(`%00`) and two hex digits."
    ),
]
Pid = Annotated[int, Path(ge=1, le=1 << 31)]
_BYTES = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}


# --- files ------------------------------------------------------------------------------------------------------------


@router.get("/files", response_class=Response, responses={200: _BYTES}, summary="Read a file")
async def read(vm_id: str, path: PathInQuery, call: Executes) -> Response:
    """Its bytes, in pieces."""
    session = await used(call, vm_id)
    pieces = session.files.read_stream(path)
    first = await anext(pieces, b"")  # what is wrong with it is known now, and not in the middle of the answer

    async def rest() -> AsyncIterator[bytes]:
        yield first
        async for piece in pieces:
            yield piece

    return PatientStream(rest(), call.service.config.slow_reader_seconds)


@router.put(
    "/files", response_model=EntryInfo, summary="Write a file",
    openapi_extra={"requestBody": {"required": True, **_BYTES}},
)  # fmt: skip
async def write(
    vm_id: str, path: PathInQuery, call: Executes, mode: Annotated[int | None, Query(ge=0, le=0o7777)] = None
) -> Response:
    """The body is what it shall hold; it appears when it is whole. The machine's disk is the only limit."""
    session = await used(call, vm_id)
    return answer(await session.files.write(path, call.request.stream(), mode=mode))


@router.delete("/files", response_model=Done, summary="Remove a file")
async def remove(vm_id: str, path: PathInQuery, call: Executes) -> Response:
    """Or a directory, with all it holds."""
    session = await used(call, vm_id)
    await session.files.remove(path)
    return answer(Done())


@router.get("/files/info", response_model=EntryInfo, summary="Look at a file")
async def file_info(vm_id: str, path: PathInQuery, call: Executes) -> Response:
    """Or a directory; of a symbolic link, the link itself."""
    session = await used(call, vm_id)
    return answer(await session.files.get_info(path))


@router.get("/files/list", response_model=EntryList, summary="List a directory")
async def list_files(
    vm_id: str, call: Executes, path: PathInQuery = ".", depth: Annotated[int, Query(ge=1, le=1000)] = 1
) -> Response:
    """Its entries, so many levels deep."""
    session = await used(call, vm_id)
    return await long_answer(EntryList(entries=await session.files.list(path, depth=depth)))


@router.post("/files/mkdir", response_model=MadeDir, summary="Make a directory")
async def make_dir(vm_id: str, body: PathRequest, call: Executes) -> Response:
    """And its parents."""
    session = await used(call, vm_id)
    return answer(MadeDir(created=await session.files.make_dir(body.path)))


@router.post("/files/rename", response_model=EntryInfo, summary="Rename or move a file")
async def rename(vm_id: str, body: RenameRequest, call: Executes) -> Response:
    """A file of the new name is replaced."""
    session = await used(call, vm_id)
    return answer(await session.files.rename(body.path, body.new_path))


# --- commands ---------------------------------------------------------------------------------------------------------


@router.post("/commands", response_model=CommandResult, responses={200: SSE}, summary="Run a command")
async def command(vm_id: str, body: CommandRequest, call: Executes) -> Response:
    """Always a stream: `started` with the pid (in the background), stdout, stderr, then `complete`. To leave kills the
    command, unless it runs in the background."""
    session = await used(call, vm_id)
    return call.stream(lambda outbox: _command(call, session, body, outbox))


async def _command(call: Call, session: SandboxInstance, body: CommandRequest, outbox: Outbox) -> BaseModel:
    argv = ["/bin/bash", "-c", body.cmd] if isinstance(body.cmd, str) else body.cmd
    seconds = bounds.command_seconds(call.service.config, body.timeout_seconds)
    if not body.background:
        with call.service.accepted(call.principal):
            heard = outbox.listeners()
            return await session.runner.exec(argv, cwd=body.cwd, env=body.envs, timeout=seconds, listeners=heard)
    call.service.check_open()
    followed = _Leaving(outbox)
    running = await call.service.commands(session).start(argv, body.cwd, body.envs, seconds, followed.listeners)
    try:
        await outbox.put("started", CommandStarted(pid=running.pid))
        followed.begun.set()
        return await running.wait()
    finally:
        followed.gone = True


class _Leaving:
    """Listeners of a command that goes on when its reader has left."""

    def __init__(self, outbox: Outbox) -> None:
        self.gone = False
        self.begun = asyncio.Event()
        """What it prints comes after the event that it has started."""
        wanted = outbox.listeners()

        async def tell(stream: str, content: str) -> None:
            await self.begun.wait()
            if not self.gone:
                try:
                    await wanted.text(stream, content)
                except ClientDisconnected:
                    self.gone = True

        self.listeners = Listeners(lambda text: tell("stdout", text), lambda text: tell("stderr", text))


@router.get("/commands", response_model=ProcessList, summary="Commands under way")
async def list_commands(vm_id: str, call: Executes) -> Response:
    """Those that were started from outside."""
    session = await used(call, vm_id)
    return answer(ProcessList(processes=await session.processes.list()))


@router.delete("/commands/{pid}", response_model=KillResponse, summary="Kill a command")
async def kill(vm_id: str, pid: Pid, call: Executes) -> Response:
    """With its children."""
    session = await used(call, vm_id)
    return answer(KillResponse(killed=await session.processes.kill(pid)))


@router.post("/commands/{pid}/stdin", response_model=Done, summary="Write to a command's standard input")
async def stdin(vm_id: str, pid: Pid, body: StdinRequest, call: Executes) -> Response:
    """Of one in the background; the answer comes when it has taken everything."""
    session = await used(call, vm_id)
    await call.service.commands(session).send_stdin(pid, decoded(body.data, "data"), eof=body.eof)
    return answer(Done())
