"""`TerraphimAgent`: an agent with a role, a sandbox, and a model if its role names one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from emberbox.agent.chat import ChatClient, Message
from emberbox.agent.command import ChatAccess, Command
from emberbox.agent.conversation import Conversation
from emberbox.agent.listening import AgentListener, Silent
from emberbox.agent.models import CommandInput, CommandOutput, CommandType
from emberbox.agent.role import Role
from emberbox.agent.runtime import place_of
from emberbox.engine import Engine
from emberbox.errors import ConfigError, ValidationFailed, VmNotAvailable
from emberbox.hooks.approval import Approver
from emberbox.hooks.contract import Hook
from emberbox.hooks.manager import HookManager
from emberbox.images.store import Progress, no_progress
from emberbox.sdk.sandbox import AsyncSandbox


class TerraphimAgent:
    """An agent. Use it as an async context manager, or `await agent.close()` it.

    It has one sandbox, made when code runs for the first time and kept between commands, and one conversation.

    Args:
        role: a Role, the path of a role file, or a mapping of its form.
        engine: run code in this one, which is not closed; None: what the role says (`integration_mode`).
        hooks: around code and prompts, after those that the settings name; a HookManager takes their place.
        approver: asks a person where the role, a hook or a rule wants it; without one that counts as no.
        progress: told of the steps where an image has to be built first.

    Raises:
        ConfigError: the role, the settings, a hook or the model's key is wrong or missing.
        ValidationFailed: `engine` together with `hooks` or `approver`.
    """

    def __init__(
        self,
        role: Role | str | Path | Mapping[str, Any],
        *,
        engine: Engine | None = None,
        hooks: HookManager | Iterable[Hook] = (),
        approver: Approver | None = None,
        progress: Progress = no_progress,
    ) -> None:
        self.role = _role_of(role)
        hooks = hooks if isinstance(hooks, HookManager) else tuple(hooks)
        self._runtime = place_of(self.role, engine=engine, hooks=hooks, approver=approver, progress=progress)
        self._asking: ChatAccess | None = None
        if self.role.has_model:
            self._asking = ChatAccess(ChatClient(self.role), tools=self.role.use_tools != "never")
        self._conversation = Conversation(self.role.max_messages, self.role.max_conversation_chars)
        self._one_at_a_time = asyncio.Lock()
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def sandbox(self) -> AsyncSandbox | None:
        """The sandbox, for files and commands; None as long as nothing ran (`open()` makes it)."""
        return self._runtime.sandbox

    @property
    def conversation(self) -> list[Message]:
        """A copy of what was said, oldest first, as it goes over the wire; without the system prompt."""
        return self._conversation.messages

    async def open(self) -> AsyncSandbox:
        """Make the sandbox now, such as to write files that code is to find.

        Raises:
            VmNotAvailable: no back end is usable, or the agent is closed.
            ImageError, NoCapacity: as of `AsyncSandbox.create`.
        """
        sandbox, _ = await self._runtime.open()
        return sandbox

    async def process_command(self, command: CommandInput, listener: AgentListener | None = None) -> CommandOutput:
        """Do what a command says. Several at once wait for each other.

        What code does wrong, what is refused, and what hooks block is in the output. When this is cancelled or raises,
        the conversation is as it was before.

        Args:
            command: a text, and what to do with it.
            listener: told of each step as it is made.

        Raises:
            ConfigError: CHAT, and the role names no model.
            ValidationFailed: the text is too long.
            VmConnectionError, ExecutionTimeout, Unauthorized, Forbidden, TooManyRequests, ApiError: the model could
                not be asked, and nothing had run before.
            VmNotAvailable, ImageError, HistoryError: there is no sandbox, or nothing can be recorded.
        """
        self._check(command)
        async with self._one_at_a_time:
            if self._closed:
                raise VmNotAvailable("The agent is closed.", remediation="Make a new one.")
            work = Command(command, self._runtime, self._asking, self._conversation, listener or Silent())
            return await work.run()

    def _check(self, command: CommandInput) -> None:
        most = self._runtime.settings.max_input_bytes
        if len(command.text.encode()) > most:
            raise ValidationFailed(
                f"The text is longer than {most} bytes.", remediation="Raise max_input_bytes, or give less at once."
            )
        chars = self.role.max_conversation_chars
        if self._asking is not None and command.command is CommandType.CHAT and len(command.text) > chars // 4:
            raise ValidationFailed(
                f"The question is longer than {chars // 4} characters, a quarter of the conversation.",
                remediation="Raise max_conversation_chars in the role file, or ask with less text.",
            )

    async def reset(self) -> None:
        """Begin anew: the conversation is forgotten, the sandbox ended."""
        async with self._one_at_a_time:
            self._conversation.clear()
            await self._runtime.end()

    async def close(self) -> None:
        """End the sandbox, the connections, and the engine if it is the agent's own. A command under way fails."""
        self._closed = True
        try:
            await self._runtime.close()
        finally:
            if self._asking is not None:
                await self._asking.client.aclose()


def _role_of(role: Role | str | Path | Mapping[str, Any]) -> Role:
    if isinstance(role, Role):
        return role
    if isinstance(role, str | Path):
        return Role.load(role)
    if isinstance(role, Mapping):
        return Role.of(role)
    raise ConfigError(f"A role is a Role, a path or a mapping, not {type(role).__name__}.")
