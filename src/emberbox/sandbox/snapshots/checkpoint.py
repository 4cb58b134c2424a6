"""Writes a machine into a directory: its agent is quiet meanwhile, and wakes again whatever happens."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from emberbox.errors import ExecutionFailed, ExecutionTimeout, SnapshotFailed
from emberbox.images.store import Image
from emberbox.machines.contract import Death, Machine, Snapshot
from emberbox.machines.digests import states_of
from emberbox.models import MachineLimits, TerminationReason
from emberbox.sandbox.lineage import SnapshotPoint
from emberbox.sandbox.work import ANSWER_SECONDS

_OF_CONCERN = 3
"""What uses less than one part in 2 ** 3 of its memory has not so many files that a snapshot could take the rest."""
_BYTES_FOR_EACH = 9_500
"""That gVisor allocates for each file while it writes a snapshot, within the machine's memory: measured with 20,000."""


async def checkpoint(
    machine: Machine, image: Image, limits: MachineLimits, directory: Path, *, sandbox_id: str, look: bool
) -> Snapshot:
    """Write a machine of this image and these limits down. The caller keeps it from being replaced meanwhile.

    `look`: find out whether anything of the user's runs in it, for `Snapshot.idle`.

    Raises:
        SnapshotFailed: code is running, or the machine or the disk refused.
    """
    channel = machine.channel
    with channel.held():
        try:
            figures = machine.stats()
            used = max(0, (figures.memory_bytes or 0) - figures.reclaimable_bytes)
            count = machine.backend == "gvisor" and used > limits.memory_mb << 20 >> _OF_CONCERN
            answer, _ = await channel.call("quiesce", timeout=ANSWER_SECONDS, urgent=True, look=look, count=count)
            _check_memory(answer.get("files"), used, limits, sandbox_id)
            last = channel.last_request
            size = await machine.checkpoint(directory)
            written = states_of(directory)
        except (ExecutionFailed, ExecutionTimeout) as exc:
            raise SnapshotFailed(f"Sandbox {sandbox_id} cannot be copied now: {exc.message}") from exc
        except OSError as exc:
            raise SnapshotFailed(f"Cannot look at a snapshot in {directory}: {exc.strerror}.") from exc
        finally:
            await _wake_again(machine)
    return Snapshot(directory, image, limits, last, size, written=written, idle=answer.get("idle") is True)


def _check_memory(files: object, used: int, limits: MachineLimits, sandbox_id: str) -> None:
    """Raises SnapshotFailed: to write so many files down would take all of a machine's memory, and end it."""
    if not isinstance(files, int):
        return  # nobody counted them
    needed = files * _BYTES_FOR_EACH
    if used + needed > limits.memory_mb << 20:
        raise SnapshotFailed(
            f"Sandbox {sandbox_id} has {files:,} files and folders: a snapshot of them needs some {needed >> 20} MiB "
            f"beside the {used >> 20} MiB that it uses, of {limits.memory_mb} MiB.",
            remediation="Remove files, pack them into an archive, or give the sandbox more memory (limits.memory_mb).",
        )


async def _wake_again(machine: Machine) -> None:
    """Have the agent go on after a checkpoint, or the attempt: it serves requests in order, so that this undoes a late
    quiesce. A machine that cannot be woken would be quiet for ever."""
    if machine.channel.closed is None:
        try:
            await machine.channel.call("wake", timeout=ANSWER_SECONDS, urgent=True, fork=False)
        except (ExecutionFailed, ExecutionTimeout):
            await machine.kill(Death(TerminationReason.CRASHED, "the sandbox did not go on after a snapshot"))


async def discard(work: asyncio.Future[tuple[Snapshot, SnapshotPoint]], directory: Path) -> None:
    """Remove a checkpoint that nobody waits for any more, when it has been written."""
    await asyncio.wait([work])
    if not work.cancelled():
        work.exception()  # whoever wanted to know has left
    await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
