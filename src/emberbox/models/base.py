"""What all of them share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Language = Literal["python", "javascript", "bash", "rust"]
ALL_LANGUAGES: tuple[Language, ...] = get_args(Language)


Seconds = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
"""A span of time that clocks can add: more than 0, at most some 30 years."""
Milliseconds = Annotated[int, Field(ge=1, le=10**12)]
EnvName = Annotated[str, StringConstraints(pattern=r"^[^=\x00]+$", max_length=1000)]
EnvValue = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
"""What the environment of a process can hold (environ(7))."""
AgentId = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,200}$")]


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
