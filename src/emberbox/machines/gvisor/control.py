"""The control socket of a gVisor sandbox: checkpoint and restore in tens of milliseconds, without a command.

The socket belongs to runsc's internals. Messages are JSON objects `{"method", "arg"}` with descriptors beside them,
answers `{"success", "err", "result"}` (runsc/boot/controller.go and pkg/urpc). Names that differ between releases are
in the `Dialect`; fields that a release does not know it ignores. What is wrong with it on another version shows as
ControlError; callers then use runsc's commands instead.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from emberbox.machines.gvisor.dialect import Dialect

IMAGE_FILES = ("checkpoint.img", "pages_meta.img", "pages.img")
"""Of a checkpoint: the kernel's state, where the pages are, the pages."""

_LOOPBACK = {
    "Name": "lo",
    "Addresses": [{"Address": "127.0.0.1", "PrefixLen": 8}, {"Address": "::1", "PrefixLen": 128}],
    "Routes": [
        {"Destination": {"IP": "127.0.0.0", "Mask": "/wAAAA=="}, "Gateway": ""},
        {"Destination": {"IP": "::1", "Mask": "/////////////////////w=="}, "Gateway": ""},
    ],
    "GVisorGRO": False,
}
_NO_GATEWAY = {"Route": {"Destination": {"IP": "", "Mask": None}, "Gateway": ""}, "Name": ""}
_NETWORK = {
    "LoopbackLinks": [_LOOPBACK],
    "FDBasedLinks": None,
    "XDPLinks": None,
    "Defaultv4Gateway": _NO_GATEWAY,
    "Defaultv6Gateway": _NO_GATEWAY,
    "PCAP": False,
    "LogPackets": False,
    "NATBlob": False,
    "DisconnectOk": False,
    "IsRestore": True,
}
"""What runsc itself asks for with `--network=none`: a loopback device and nothing else."""


class ControlError(Exception):
    """The control socket refused, or does not speak as expected."""


class Control:
    """One connection; blocking, with a deadline for each answer. Use it in a thread.

    Args:
        path: the socket.
        timeout: seconds for each answer.
        dialect: of the runsc that the sandbox was made by.
    """

    def __init__(self, path: Path, timeout: float, dialect: Dialect) -> None:
        if dialect.network is None:
            raise ControlError("this runsc has no control socket that is known")
        self._network = dialect.network
        self._background = dialect.background
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(str(path))
        except OSError as exc:
            self._socket.close()
            raise ControlError(f"cannot connect to {path.name}: {exc}") from exc

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def checkpoint(self, directory: Path) -> None:
        """Write the sandbox into `directory`; it runs on."""
        options = {
            "key": None,
            "metadata": {"compression": "none"},
            "MemoryFileSaveOpts": {"ExcludeCommittedZeroPages": True},  # 2024
            "app_mf_exclude_committed_zero_pages": True,  # 2026: the same
            "have_pages_file": True,
            "Resume": True,
        }
        with _opened(directory, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fds:
            self._call("containerManager.Checkpoint", options, fds)

    def restore(self, directory: Path) -> None:
        """Begin to run what `directory` holds, in a sandbox that was created and not started."""
        self._call(self._network, _NETWORK)
        options = {"HavePagesFile": True, "HaveDeviceFile": False, "Background": self._background}
        with _opened(directory, os.O_RDONLY) as fds:
            self._call("containerManager.Restore", options, fds)

    def _call(self, method: str, argument: dict[str, Any], fds: Sequence[int] = ()) -> None:
        data = json.dumps({"method": method, "arg": argument}).encode()
        try:
            socket.send_fds(self._socket, [data], list(fds))
            answer = self._answer()
        except (OSError, ValueError) as exc:
            raise ControlError(f"{method}: {exc or type(exc).__name__}") from exc
        if not isinstance(answer, dict) or answer.get("success") is not True:
            reason = answer.get("err") if isinstance(answer, dict) else answer
            raise ControlError(f"{method}: {str(reason)[:500]}")

    def _answer(self) -> Any:
        data = b""
        while True:
            piece = self._socket.recv(1 << 16)
            if not piece:
                raise ValueError("the sandbox closed its control socket")
            data += piece
            try:
                return json.loads(data)
            except ValueError:
                if len(data) > 1 << 20:
                    raise


@contextmanager
def _opened(directory: Path, flags: int) -> Iterator[list[int]]:
    fds: list[int] = []
    try:
        for name in IMAGE_FILES:
            fds.append(os.open(directory / name, flags | os.O_CLOEXEC, 0o600))  # noqa: PERF401 (closed below even if one fails)
        yield fds
    finally:
        for fd in fds:
            os.close(fd)
