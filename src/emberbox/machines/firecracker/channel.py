"""A channel whose connection can be replaced: Firecracker ends all vsock connections when it writes a snapshot.

(VIRTIO_VSOCK_EVENT_TRANSPORT_RESET, docs/snapshotting/snapshot-support.md of Firecracker: listeners survive.)
"""

from __future__ import annotations

import os
from collections.abc import Callable

from emberbox.machines.channel import Channel


class VmChannel(Channel):
    """The channel to the agent of one microVM."""

    def __init__(self, read_fd: int, write_fd: int, on_broken: Callable[[str], None]) -> None:
        self._attached = True
        super().__init__(read_fd, write_fd, on_broken)

    def detach(self) -> None:
        """Neither read nor write from now on: the connection is about to end, and that means nothing. The agent must be
        quiet, because what is on its way is lost."""
        if self._closed is None:
            self._attached = False
            self._unwatch()

    def _unwatch(self) -> None:
        for fd in self.fds:
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)

    def attach(self, read_fd: int, write_fd: int) -> None:
        """Go on through another connection, whose descriptors take the place of ours."""
        if self._closed is not None:
            os.close(read_fd)
            os.close(write_fd)
            return
        self._unwatch()  # a request that came meanwhile waits to be written
        for ours, theirs in zip(self.fds, (read_fd, write_fd), strict=True):
            os.set_blocking(theirs, False)
            os.dup2(theirs, ours, inheritable=False)
            os.close(theirs)
        self._attached = True
        self._loop.add_reader(self._read_fd, self._readable)
        if self._out:
            self._loop.add_writer(self._write_fd, self._writable)

    def _write_some(self) -> None:
        if self._attached:
            super()._write_some()

    def _writable(self) -> None:
        if self._attached:
            super()._writable()
        else:
            self._loop.remove_writer(self._write_fd)  # until there is a connection again
