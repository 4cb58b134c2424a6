"""What a hook is: four questions, four possible answers.

A hook is a class derived from `Hook` that overrides what it cares about, as a coroutine or as a plain function:

    class NoSockets(Hook):
        async def pre_tool(self, context: PreToolContext) -> HookDecision:
            return Block(reason="no sockets here") if "socket" in context.code else Allow()
"""

from __future__ import annotations

import re
from collections.abc import Awaitable
from typing import Annotated, Any, Literal, Protocol

from pydantic import ConfigDict, Field

from emberbox.models import ExecutionError, Finding, Model, Result

Stream = Literal["stdout", "stderr"]


class _Frozen(Model):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ToolOutput(_Frozen):
    """Everything that the caller gets to see of an execution."""

    stdout: str = ""
    stderr: str = ""
    results: list[Result] = Field(default_factory=list)
    error: ExecutionError | None = None


class Allow(_Frozen):
    """Go on with what there is."""

    decision: Literal["allow"] = "allow"


class Block(_Frozen):
    """Stop here. `findings` are the places, where there are any; the manager fills in `hook`."""

    decision: Literal["block"] = "block"
    reason: str
    hook: str = ""
    findings: list[Finding] = Field(default_factory=list)


class Modify(_Frozen):
    """Go on with `value`: new code, prompt or response. Of an output, a text is all that the caller will see, and a
    ToolOutput takes its place part by part. `reason` is for the audit trail."""

    decision: Literal["modify"] = "modify"
    value: str | ToolOutput
    reason: str = ""


class AskUser(_Frozen):
    """Ask a person. No answer in time is a no."""

    decision: Literal["ask_user"] = "ask_user"
    prompt: str
    reason: str = ""


HookDecision = Annotated[Allow | Block | Modify | AskUser, Field(discriminator="decision")]
Answer = HookDecision | Awaitable[HookDecision]
"""What a hook's method may return: a decision, or a coroutine that gives one."""


class _Context(_Frozen):
    agent_id: str = "local"
    vm_id: str | None = None
    template: str | None = None
    role: str | None = None
    execution_id: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class PreToolContext(_Context):
    """Code that is about to run."""

    code: str
    language: str


class PostToolContext(_Context):
    """What came of code that ran. `output` is the text of both streams, stdout first; `parts` has all of it."""

    original_code: str
    output: str
    exit_code: int
    duration_ms: float = Field(ge=0)
    language: str | None = None
    parts: ToolOutput = Field(default_factory=ToolOutput)


class PreLlmContext(_Context):
    """A prompt that is about to go to a model. `conversation_history` holds messages as they went over the wire."""

    prompt: str
    conversation_history: list[dict[str, Any]] = Field(default_factory=list)
    token_count: int | None = Field(default=None, ge=0)


class PostLlmContext(_Context):
    """What a model answered."""

    prompt: str
    response: str
    token_count: int | None = Field(default=None, ge=0)
    model: str | None = None


Context = PreToolContext | PostToolContext | PreLlmContext | PostLlmContext


class OutputFilter(Protocol):
    """Changes output while it streams. What it gives back for all pieces together must be what `post_tool` would make
    of the whole: the caller has seen it by then. It may hold back a bounded part of what it was given. It is called
    by one thread at a time, but not always by the same."""

    def feed(self, stream: Stream, text: str) -> str:
        """Take the next piece; return what may be shown now."""
        ...

    def idle(self, stream: Stream) -> str:
        """Nothing came for a moment: return of what is held back whatever is certain to be harmless."""
        ...

    def finish(self, stream: Stream) -> str:
        """The stream has ended: return the rest."""
        ...

    def result(self, result: Result) -> Result:
        """Take a rich result; return it as it may be shown."""
        ...


async def _allow() -> HookDecision:
    return Allow()


class Hook:
    """Policy around every execution and every call of a model. What is not overridden allows.

    Methods get a frozen context each and return a decision, or a coroutine that gives one. Plain functions run in a
    thread of their own. A method that raises, or takes longer than its time, blocks.
    """

    @property
    def name(self) -> str:
        """What decisions are recorded under: the name of the class, as in `no-sockets` for `NoSocketsHook`."""
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", type(self).__name__.removesuffix("Hook"))
        return words.lower().replace("_", "-").strip("-") or "hook"

    def pre_tool(self, context: PreToolContext) -> Answer:
        """Before code runs. Modify gives the code to run instead."""
        del context
        return _allow()

    def post_tool(self, context: PostToolContext) -> Answer:
        """When code has run, before the caller gets its output."""
        del context
        return _allow()

    def pre_llm(self, context: PreLlmContext) -> Answer:
        """Before a prompt goes to a model. Modify gives the prompt to send instead."""
        del context
        return _allow()

    def post_llm(self, context: PostLlmContext) -> Answer:
        """When a model has answered, before anything is made of it. Modify gives the answer to take instead."""
        del context
        return _allow()

    def output_filter(self, context: PreToolContext) -> OutputFilter | None:
        """A new filter for the output of one execution as it streams; None: it streams as it is."""
        del context
        return None
