"""What a snapshot of a microVM depends on, besides its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

from pydantic import ValidationError

from emberbox.errors import VmNotAvailable
from emberbox.machines.contract import Snapshot
from emberbox.models import Model

FINGERPRINT = "machine.json"


class MicroVmFingerprint(Model):
    """Base of what each back end writes down. Fields that `words` does not name may differ."""

    words: ClassVar[Mapping[str, str]]
    """By field: what is said of a snapshot whose value (`{theirs}`) is another than the host's (`{ours}`)."""

    def write(self, directory: Path) -> None:
        """Put it beside the snapshot's files; raises OSError."""
        (directory / FINGERPRINT).write_text(self.model_dump_json(exclude_none=True), encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> Self:
        """That of a snapshot or a machine; raises VmNotAvailable: it cannot be read."""
        try:
            return cls.model_validate_json((directory / FINGERPRINT).read_bytes())
        except (OSError, ValidationError) as exc:
            raise VmNotAvailable(
                f"Snapshot {directory} is damaged: {FINGERPRINT} cannot be read.",
                remediation="Take a new one.",
                retryable=False,
            ) from exc

    def check(self, snapshot: Snapshot) -> Self:
        """Compare a snapshot's with this one, which is the host's, and return it.

        Raises:
            VmNotAvailable: the snapshot is of no use here; the message says why.
        """
        theirs = self.read(snapshot.directory)
        for name, text in self.words.items():
            there, here = getattr(theirs, name), getattr(self, name)
            if there != here:
                raise VmNotAvailable(
                    f"Snapshot {snapshot.directory} " + text.format(theirs=there, ours=here) + ".",
                    remediation="Take a new one here.",
                    retryable=False,
                )
        return theirs
