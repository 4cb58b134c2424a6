"""Firecracker's API over its Unix socket: the calls that are used, typed, each with a deadline.

Fields and paths: src/firecracker/swagger/firecracker.yaml of Firecracker 1.12.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from socket import AF_UNIX
from socket import socket as new_socket
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from emberbox.errors import VmNotAvailable

if TYPE_CHECKING:
    import httpx

CALL_SECONDS = 15.0
SNAPSHOT_SECONDS = 120.0
"""The guest's whole memory goes to the disk, or is looked up there."""
_POLL_SECONDS = 0.002


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BootSource(Body):
    kernel_image_path: str
    boot_args: str
    initrd_path: str | None = None


class MachineConfig(Body):
    vcpu_count: int
    mem_size_mib: int
    smt: bool = False
    track_dirty_pages: bool = True


class TokenBucket(Body):
    """So much (bytes or operations) in each `refill_time` milliseconds; a size of 0 is no limit."""

    size: int
    refill_time: int


class RateLimiter(Body):
    bandwidth: TokenBucket | None = None
    ops: TokenBucket | None = None


class Drive(Body):
    drive_id: str
    path_on_host: str
    is_root_device: bool
    is_read_only: bool
    rate_limiter: RateLimiter | None = None


class DriveUpdate(Body):
    drive_id: str
    rate_limiter: RateLimiter


class Balloon(Body):
    amount_mib: int = 0
    deflate_on_oom: bool = True
    stats_polling_interval_s: int


class BalloonUpdate(Body):
    amount_mib: int


class Vsock(Body):
    guest_cid: int
    uds_path: str


class Entropy(Body):
    pass


class Action(Body):
    action_type: Literal["InstanceStart"] = "InstanceStart"


class VmState(Body):
    state: Literal["Paused", "Resumed"]


class SnapshotCreate(Body):
    snapshot_path: str
    mem_file_path: str
    snapshot_type: Literal["Full", "Diff"]


class MemoryBackend(Body):
    backend_path: str
    backend_type: Literal["File", "Uffd"] = "File"


class SnapshotLoad(Body):
    snapshot_path: str
    mem_backend: MemoryBackend
    resume_vm: bool = True
    enable_diff_snapshots: bool = True


class BalloonStatistics(BaseModel):
    """What Firecracker knows without asking the guest."""

    actual_pages: int


class ApiError(VmNotAvailable):
    """Firecracker refused a call, or does not answer. `message` has its own words."""


class NoAnswer(ApiError):
    """Firecracker does not answer; it may have done what it was told all the same."""


class FirecrackerApi:
    """One Firecracker process.

    Args:
        socket: of its API. It appears a moment after the process has started.
    """

    def __init__(self, socket: Path) -> None:
        import httpx  # a fleet that has no microVMs does without it

        self.socket = socket
        # verify: no certificates are read for a socket that has none
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(socket), verify=False, retries=0),
            base_url="http://firecracker",
            trust_env=False,
        )

    async def appeared(self, seconds: float = CALL_SECONDS) -> None:
        """Wait until Firecracker takes connections; raises ApiError. Its socket is there a moment before it listens."""
        end = asyncio.get_running_loop().time() + seconds
        while not self._is_taken():
            if asyncio.get_running_loop().time() > end:
                raise ApiError(f"Firecracker did not open its socket {self.socket} within {seconds:g} s.")
            await asyncio.sleep(_POLL_SECONDS)

    def _is_taken(self) -> bool:
        with new_socket(AF_UNIX) as attempt:
            attempt.setblocking(False)
            try:
                attempt.connect(str(self.socket))
            except BlockingIOError:
                pass  # its queue is full: it listens
            except OSError:
                return False
        return True

    async def put(self, path: str, body: Body, *, seconds: float = CALL_SECONDS) -> None:
        """Raises ApiError."""
        await self._call("PUT", path, body, seconds)

    async def patch(self, path: str, body: Body, *, seconds: float = CALL_SECONDS) -> None:
        """Raises ApiError."""
        await self._call("PATCH", path, body, seconds)

    async def balloon_pages(self, *, seconds: float = CALL_SECONDS) -> int:
        """Pages that the guest has given to the balloon; raises ApiError, where there is no balloon as well."""
        answer = await self._call("GET", "/balloon/statistics", None, seconds)
        try:
            return BalloonStatistics.model_validate_json(answer.content).actual_pages
        except ValidationError as exc:
            raise ApiError(f"Firecracker does not say how large the balloon is: {exc}.") from exc

    async def patch_vm(self, state: Literal["Paused", "Resumed"]) -> None:
        """Stop or resume the processors of the guest; raises ApiError."""
        await self.patch("/vm", VmState(state=state))

    async def create_snapshot(self, state: str, memory: str, *, whole: bool) -> None:
        """Write a snapshot of a machine that is paused; raises ApiError.

        `whole`: all of its memory; else the pages that changed since the last snapshot, or since its start: the file
        has holes where the others are.
        """
        kind: Literal["Full", "Diff"] = "Full" if whole else "Diff"
        body = SnapshotCreate(snapshot_path=state, mem_file_path=memory, snapshot_type=kind)
        await self.put("/snapshot/create", body, seconds=SNAPSHOT_SECONDS)

    async def load_snapshot(self, state: str, memory: str, *, run: bool = True) -> None:
        """Become the machine of a snapshot, and let it run; raises ApiError."""
        body = SnapshotLoad(snapshot_path=state, mem_backend=MemoryBackend(backend_path=memory), resume_vm=run)
        await self.put("/snapshot/load", body, seconds=SNAPSHOT_SECONDS)

    async def _call(self, method: str, path: str, body: Body | None, seconds: float) -> httpx.Response:
        import httpx

        if self._client.is_closed:  # httpx has an error of another kind for it: the machine was killed meanwhile
            raise NoAnswer(f"Firecracker does not answer {method} {path}: its machine has ended.")
        json = None if body is None else body.model_dump(exclude_none=True)
        try:
            answer = await self._client.request(method, path, json=json, timeout=seconds)
        except httpx.HTTPError as exc:
            raise NoAnswer(f"Firecracker does not answer {method} {path}: {exc!r}.", retryable=True) from exc
        if answer.status_code >= 300:
            raise ApiError(f"Firecracker refused {method} {path}: {_fault(answer)}")
        return answer

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()


def _fault(answer: httpx.Response) -> str:
    """Firecracker's own words: `{"fault_message": "…"}`."""
    try:
        return str(answer.json()["fault_message"])[:1500]
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}"
