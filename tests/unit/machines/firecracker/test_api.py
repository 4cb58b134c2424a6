"""Calls of the API, against a small server on a Unix socket."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from emberbox.machines.firecracker.api import Action, ApiError, BootSource, FirecrackerApi, SnapshotLoad


class Server:
    """Answers each request with the same words, and remembers them."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, object]] = []
        self.answer = b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"
        self.delay = 0.0
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    def say(self, body: bytes) -> None:
        self.answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    def refuse(self, body: bytes) -> None:
        self.answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().splitlines()
                sizes = [int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length")]
                body = json.loads(await reader.readexactly(sizes[0])) if sizes else None
                self.seen.append((" ".join(lines[0].split()[:2]), body))
                self.asked.set()
                await asyncio.sleep(self.delay)
                await self.may_answer.wait()
                writer.write(self.answer)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def api(server: Server, tmp_path: Path) -> AsyncIterator[FirecrackerApi]:
    listening = await asyncio.start_unix_server(server.serve, str(tmp_path / "api.sock"))
    api = FirecrackerApi(tmp_path / "api.sock")
    await api.appeared(1)
    yield api
    await api.close()
    listening.close()
    await listening.wait_closed()


async def test_bodies_are_those_of_the_api(api: FirecrackerApi, server: Server) -> None:
    await api.put("/boot-source", BootSource(kernel_image_path="kernel", boot_args="quiet"))
    await api.put("/actions", Action())
    await api.patch_vm("Paused")
    await api.create_snapshot("state", "memory", whole=False)
    await api.load_snapshot("state", "memory")
    assert server.seen == [
        ("PUT /boot-source", {"kernel_image_path": "kernel", "boot_args": "quiet"}),
        ("PUT /actions", {"action_type": "InstanceStart"}),
        ("PATCH /vm", {"state": "Paused"}),
        (
            "PUT /snapshot/create",
            {"snapshot_path": "state", "mem_file_path": "memory", "snapshot_type": "Diff"},
        ),
        (
            "PUT /snapshot/load",
            {
                "snapshot_path": "state",
                "mem_backend": {"backend_path": "memory", "backend_type": "File"},
                "resume_vm": True,
                "enable_diff_snapshots": True,
            },
        ),
    ]


async def test_a_refusal_has_firecrackers_own_words(api: FirecrackerApi, server: Server) -> None:
    server.refuse(b'{"fault_message": "No such kernel."}')
    with pytest.raises(ApiError, match=r"Firecracker refused PUT /actions: No such kernel\."):
        await api.put("/actions", Action())
    for nonsense in (b"", b"[]", b"not json"):
        server.refuse(nonsense)
        with pytest.raises(ApiError, match="status 400"):
            await api.patch_vm("Resumed")


async def test_every_call_has_a_deadline(api: FirecrackerApi, server: Server) -> None:
    server.delay = 1.0
    with pytest.raises(ApiError, match="does not answer PUT /actions"):
        await api.put("/actions", Action(), seconds=0.1)


async def test_a_socket_that_is_there_and_not_listened_on_is_waited_for(tmp_path: Path) -> None:
    """Between bind(2) and listen(2): a call would be refused."""
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "api.sock"))
        api = FirecrackerApi(tmp_path / "api.sock")
        with pytest.raises(ApiError, match="did not open its socket"):
            await api.appeared(0.05)
        bound.listen(1)
        await api.appeared(1)
        await api.close()


async def test_a_socket_that_never_appears_is_an_error(tmp_path: Path) -> None:
    api = FirecrackerApi(tmp_path / "none")
    with pytest.raises(ApiError, match="did not open its socket"):
        await api.appeared(0.05)
    with pytest.raises(ApiError, match="does not answer"):
        await api.patch_vm("Paused")
    await api.close()


async def test_a_machine_that_was_killed_does_not_answer(api: FirecrackerApi, server: Server) -> None:
    server.may_answer.clear()
    waiting = asyncio.create_task(api.patch_vm("Paused"))
    await server.asked.wait()
    await api.close()
    with pytest.raises(ApiError, match="does not answer PATCH /vm"):
        await waiting
    with pytest.raises(ApiError, match="does not answer PATCH /vm"):
        await api.patch_vm("Paused")
    server.may_answer.set()


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="extra"):
        SnapshotLoad.model_validate({"snapshot_path": "s", "mem_backend": {"backend_path": "m"}, "uffd": 1})


async def test_the_size_of_the_balloon_is_asked_for(api: FirecrackerApi, server: Server) -> None:
    server.say(b'{"target_pages": 512, "actual_pages": 256, "target_mib": 2, "actual_mib": 1}')
    assert await api.balloon_pages() == 256
    assert server.seen == [("GET /balloon/statistics", None)]
    server.say(b'{"target_pages": 512}')
    with pytest.raises(ApiError, match="how large the balloon is"):
        await api.balloon_pages()
