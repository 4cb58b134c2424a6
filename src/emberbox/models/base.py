"""What all of them share."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

Language = Literal["python", "javascript", "bash", "rust"]
ALL_LANGUAGES: tuple[Language, ...] = get_args(Language)


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
