"""Shared memory of System V, which stays when the programs that made it have ended (shmctl(2), shmget(2))."""

from __future__ import annotations

import struct

from .limits import AsUser

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Set

    from .limits import Settings

IPC_RMID = 0
SHM_STAT, SHM_INFO = 13, 14
NUMBERS = 1 << 15
"""So many numbers are looked at, at most."""
ENTRY = struct.Struct("=4xIIIII8x8x8xQqqqii")
"""Of `struct shmid64_ds`: owner, group, maker, its group, mode; size, three times, the maker's pid, the last one's."""
ENTRY_ROOM = 256


def remove_shared_memory(settings: Settings, alive: Set[int]) -> None:
    """Remove the user's segments whose makers are not among `alive`; each goes when nobody has it mapped."""
    try:
        import ctypes  # rarely needed, and large
    except ImportError:
        return
    with AsUser(settings):  # the agent has not the right to look at what belongs to others
        _remove(ctypes, settings.uid, alive)


def _remove(ctypes: Any, uid: int, alive: Set[int]) -> None:
    call = ctypes.CDLL(None).shmctl
    room = ctypes.create_string_buffer(ENTRY_ROOM)
    if call(0, SHM_INFO, room) < 0:
        return
    (left,) = struct.unpack_from("=i", room.raw)
    for index in range(NUMBERS):
        if left <= 0:
            return
        ident = call(index, SHM_STAT, room)
        if ident < 0:
            continue
        ident = ident or index  # gVisor takes the identifier for the index, and does not say it
        left -= 1
        owner, _, _, _, _, _, _, _, _, maker, _ = ENTRY.unpack_from(room.raw)
        if owner == uid and maker not in alive:
            call(ident, IPC_RMID, None)
