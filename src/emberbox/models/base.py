"""What all of them share."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, StringConstraints

RESERVED = "emberbox:"
"""Names that begin so are of Emberbox itself: agents, and words of a sandbox's metadata."""
TEMPLATE_NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"
Language = Literal["python", "javascript", "bash", "rust", "typescript"]
ALL_LANGUAGES: tuple[Language, ...] = get_args(Language)


Seconds = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
"""A span of time that clocks can add: more than 0, at most some 30 years."""
Milliseconds = Annotated[int, Field(ge=1, le=10**12)]
EnvName = Annotated[str, StringConstraints(pattern=r"^[^=\x00]+$", max_length=1000)]
EnvValue = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
"""What the environment of a process can hold (environ(7))."""


def _not_reserved(value: str) -> str:
    if value.startswith(RESERVED):
        raise ValueError(f"names that begin with {RESERVED!r} are the server's own; use another one")
    return value


AgentId = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,200}$"), AfterValidator(_not_reserved)]
TemplateName = Annotated[str, StringConstraints(pattern=TEMPLATE_NAME)]
"""What a client of a server may name: never a path."""


_BYTES = re.compile("[\udc80-\udcff]")
_BYTES_IN_JSON = re.compile("\0([89a-f][0-9a-f])")


def name_to_json(name: str) -> str:
    """A name of a file as JSON has it: each byte that is not UTF-8 is U+0000, which no name has, and two hex digits."""
    return name if name.isascii() else _BYTES.sub(lambda found: f"\0{ord(found[0]) - 0xDC00:02x}", name)


def name_from_json(name: str) -> str:
    """The opposite: such a byte is half of a surrogate pair, as `os.fsdecode` has it."""
    return _BYTES_IN_JSON.sub(lambda found: chr(0xDC00 + int(found[1], 16)), name) if "\0" in name else name


GuestPath = Annotated[
    str, AfterValidator(name_from_json), PlainSerializer(name_to_json, return_type=str, when_used="json")
]
"""A name of a file in a sandbox: in Python a text as of `os.fsdecode`, in JSON one that every reader takes."""


class Model(BaseModel):
    """Base: unknown keys are an error that names the key."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class TerminationReason(StrEnum):
    """Why an execution ended. Anything but `completed` and `output-truncated` means that the code was cut short or
    could not get what it asked for."""

    COMPLETED = "completed"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    PROCESSES = "processes"
    DISK = "disk"
    OUTPUT_TRUNCATED = "output-truncated"
    KILLED = "killed"
    CRASHED = "crashed"
    INTERRUPTED = "interrupted"
