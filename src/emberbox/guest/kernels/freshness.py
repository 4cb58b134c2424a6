"""New seeds for the random number generators of a Python process whose machine is a copy of another one.

The kernel's generator differs in each copy, and with it `os.urandom`, `secrets`, `uuid4` and, by a provider in the
image, all of OpenSSL. What keeps a state of its own in the process is listed here. Objects that a program made, such as
`random.Random()` or `numpy.random.default_rng()`, go on from where they are: the program may have seeded them.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict

SIGNAL = signal.SIGURG
"""What the agent sends to every process of the user in a copy. Those that do not handle it never notice (signal(7))."""


def _tempfile(module: Any) -> None:
    module._name_sequence = None  # noqa: SLF001 - made anew at the next name; its generator only notices forks


def _uuid(module: Any) -> None:
    # libuuid keeps node and clock sequence, and cannot be told: from here on Python's own code makes version 1.
    module._generate_time_safe = None  # noqa: SLF001
    node = int.from_bytes(os.urandom(6), "big") | 1 << 40  # multicast: not that of any device (RFC 9562, 6.10)
    module._node = node  # noqa: SLF001


def _polars(module: Any) -> None:
    module.set_random_seed(int.from_bytes(os.urandom(7), "big"))


GENERATORS: Dict[str, Callable[[Any], Any]] = {
    "random": lambda module: module.seed(),
    "numpy.random": lambda module: module.seed(),
    "tempfile": _tempfile,
    "uuid": _uuid,
    "sympy.core.random": lambda module: module.seed(),
    "torch": lambda module: module.seed(),
    "polars": _polars,
}
"""By module: how to seed it anew. Only modules that are loaded already are touched."""


def freshen() -> None:
    """Seed every generator of this process anew. Never raises: it runs in the middle of programs."""
    for name, renew in GENERATORS.items():
        module = sys.modules.get(name)
        if module is not None:
            try:
                renew(module)
            except Exception:  # noqa: BLE001, S110 - a module of the user's by that name, or another release of it
                pass


def listen() -> None:
    """Seed anew when the agent says that this machine is a copy."""
    signal.signal(SIGNAL, lambda _number, _frame: freshen())
