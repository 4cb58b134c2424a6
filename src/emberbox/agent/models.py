"""What an agent is asked, and what it answers."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field, field_validator

from emberbox.models import BlockError, CodeBlock, ExecutionIntent, Model, VmExecuteResponse


class CommandType(StrEnum):
    """What to do with the text of a command."""

    EXECUTE = "execute"
    """It is an answer or a message with code: run what is meant to run. Without any code, and where the role names a
    model, it is taken as CHAT."""
    CHAT = "chat"
    """It is a question for the model, whose code runs."""


class CommandInput(Model):
    """One message to an agent."""

    command: CommandType
    text: str = Field(description="not empty")

    @field_validator("text")
    @classmethod
    def _some_text(cls, value: str) -> str:
        """Halves of surrogate pairs, as a command line may have them, go into no request and no database."""
        if not value.strip():
            raise ValueError("there is no text")
        return value.encode("utf-8", "replace").decode()


class CommandStatus(StrEnum):
    """How a command ended."""

    COMPLETED = "completed"
    """What ran last succeeded, or nothing had to run and the model answered."""
    FAILED = "failed"
    """The code that ran last failed, repairs included; or the model could not be asked again."""
    TIMEOUT = "timeout"
    """The code that ran last was stopped for its time."""
    REFUSED = "refused"
    """The policy, a hook or a person refused the last code."""
    BLOCKED = "blocked"
    """A hook refused the prompt or the model's answer."""
    NOTHING_RUN = "nothing-run"
    """The text had no code that is meant to run, and no model was asked."""


class TokenUsage(Model):
    """Tokens of all calls of a command, as the model's server counted them."""

    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)
    total_tokens: int = Field(default=0, ge=0)

    def plus(self, other: TokenUsage) -> TokenUsage:
        """The sum of both."""
        return TokenUsage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            total_tokens=self.total_tokens + other.total_tokens,
        )


class CommandOutput(Model):
    """What came of a command.

    `code_blocks` holds everything that was found, in the texts of all rounds and in tool calls; `metadata["round"]` of
    each is 0 for the command's own text, else the number of the model's answer, and `metadata["execution_id"]` is its
    entry in `execution_results` if it ran. `errors` refers to it by index.
    """

    status: CommandStatus = CommandStatus.NOTHING_RUN
    text: str = Field(default="", description="the model's last answer; without one, what the code printed")
    intent: ExecutionIntent | None = Field(default=None, description="of the text of an EXECUTE")
    code_blocks: list[CodeBlock] = Field(default_factory=list)
    execution_results: list[VmExecuteResponse] = Field(default_factory=list, description="what ran, in its order")
    errors: list[BlockError] = Field(default_factory=list, description="what was refused, and why")
    model: str | None = Field(default=None, description="that answered, as its server names it")
    rounds: int = Field(default=0, ge=0, description="answers of the model")
    repairs: int = Field(default=0, ge=0, description="tries after code that failed")
    rollbacks: list[str] = Field(default_factory=list, description="snapshots gone back to between tries")
    bound: Literal["rounds", "repairs"] | None = Field(default=None, description="which limit of the role ended it")
    usage: TokenUsage | None = Field(default=None, description="None: the server did not say")
    sandbox_id: str | None = None
    notes: list[str] = Field(default_factory=list, description="what else the caller should know")
    duration_ms: float = Field(default=0, ge=0)

    @property
    def succeeded(self) -> bool:
        """Whether the status is `completed`."""
        return self.status is CommandStatus.COMPLETED
