"""Where the code of an agent runs, and whom its hooks are: in this process with an engine, or behind a server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

from emberbox.agent.role import Role
from emberbox.code_extractor import CodeBlockExtractor
from emberbox.config import Settings, load_settings
from emberbox.engine import Engine, ExecuteRequest
from emberbox.engine.guardrails import ExecutionSubject, Guardrails
from emberbox.errors import ValidationFailed, VmExecutionError, VmNotAvailable
from emberbox.hooks.approval import Approver
from emberbox.hooks.contract import Hook, PostLlmContext, PreLlmContext
from emberbox.hooks.loading import manager_of
from emberbox.hooks.manager import HookManager
from emberbox.images.store import Progress, no_progress
from emberbox.languages import get_language
from emberbox.models import Execution
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sandbox.listeners import Listeners
from emberbox.sdk.backends.local import LocalBackend
from emberbox.sdk.sandbox import AsyncSandbox

_SETTLE_SECONDS = 10.0


class Runtime(ABC):
    """One sandbox at a time, made when it is needed first.

    Args:
        role: whose it is.
        settings: in force.
        hooks: around code and prompts.
    """

    def __init__(self, role: Role, settings: Settings, hooks: HookManager) -> None:
        self.role = role
        self.settings = settings
        self.hooks = hooks
        self.extractor = CodeBlockExtractor(settings.auto_execute_threshold, settings.vm_execution)
        self.sandbox: AsyncSandbox | None = None
        """None: not made yet, or gone."""
        self._opening = asyncio.Lock()
        self._closed = False

    @property
    def vm_id(self) -> str | None:
        return None if self.sandbox is None else self.sandbox.sandbox_id

    async def open(self) -> tuple[AsyncSandbox, bool]:
        """The sandbox; and whether it takes the place of one that has ended.

        Raises:
            VmNotAvailable: the agent is closed, or no sandbox can be made.
        """
        async with self._opening:
            ended = self.sandbox is not None and not await _goes_on(self.sandbox)
            if ended:
                await self.end()
            if self._closed:
                raise VmNotAvailable("The agent is closed.", remediation="Make a new one.")
            if self.sandbox is None:
                self.sandbox = await self._create()
            await self.sandbox.set_timeout(self.role.sandbox_timeout_seconds)
            return self.sandbox, ended

    async def end(self) -> None:
        """Kill the sandbox, if there is one."""
        sandbox, self.sandbox = self.sandbox, None
        if sandbox is not None:
            await sandbox.kill()

    async def close(self) -> None:
        """Kill the sandbox; no other can be made."""
        self._closed = True
        async with self._opening:  # one that is being made is ours to kill
            await self.end()

    @abstractmethod
    async def _create(self) -> AsyncSandbox: ...

    @abstractmethod
    async def run(self, language: str, code: str, metadata: Mapping[str, Any], listeners: Listeners) -> Execution:
        """Run code in the sandbox, which is open. Raises as of `Engine.execute`."""

    @abstractmethod
    async def check_prompt(self, context: PreLlmContext) -> str:
        """The prompt to send; raises PolicyBlocked."""

    @abstractmethod
    async def check_response(self, context: PostLlmContext) -> str:
        """The answer to take; raises PolicyBlocked."""


class DirectRuntime(Runtime):
    """In this process. What passes the hooks is in the history.

    Args:
        role: whose it is.
        engine: makes the sandbox.
        owned: it is closed with this.
        progress: told of the steps where an image is built.
    """

    def __init__(
        self,
        role: Role,
        engine: Engine,
        *,
        owned: bool,
        progress: Progress = no_progress,
    ) -> None:
        self._owned = owned
        self._engine = engine
        self._progress = progress
        self._session: SandboxInstance | None = None
        super().__init__(role, self._engine.settings, self._engine.hooks)
        if role.auto_execute_threshold is not None:
            self.extractor.threshold = role.auto_execute_threshold

    async def _create(self) -> AsyncSandbox:
        self._session = await self._engine.create_sandbox(
            agent_id=self.role.agent, timeout=self.role.sandbox_timeout_seconds, progress=self._progress
        )
        return AsyncSandbox(LocalBackend(self._session, self._engine))

    async def run(self, language: str, code: str, metadata: Mapping[str, Any], listeners: Listeners) -> Execution:
        if self._session is None:
            raise VmNotAvailable("The agent's sandbox has ended.", remediation="Give the command once more.")
        request = ExecuteRequest(
            self._session, language, code, agent_id=self.role.agent, role=self.role.name, metadata=metadata
        )
        return await self._engine.execute(request, listeners)

    async def check_prompt(self, context: PreLlmContext) -> str:
        return await self._engine.check_prompt(context)

    async def check_response(self, context: PostLlmContext) -> str:
        return await self._engine.check_response(context)

    async def end(self) -> None:
        self._session = None
        await super().end()

    async def close(self) -> None:
        try:
            await super().close()
        finally:
            if self._owned:
                await self._engine.close()


class ServerRuntime(Runtime):
    """Behind a server. It has hooks and a history of its own; the hooks here come first, and around prompts they are
    all there is.

    Args:
        role: whose it is.
        settings: in force; `vm_execution.api_base_url` is the server.
        hooks: around code and prompts.
    """

    def __init__(self, role: Role, settings: Settings, hooks: HookManager) -> None:
        super().__init__(role, settings, hooks)
        self._guardrails = Guardrails(self.hooks, self.extractor)
        self._left = False
        """An execution was cancelled here; the server may not have stopped it yet."""

    async def _create(self) -> AsyncSandbox:
        config = self.settings.vm_execution
        template = config.default_vm_type if "default_vm_type" in config.model_fields_set else None
        return await AsyncSandbox.create(
            template,
            timeout=self.role.sandbox_timeout_seconds,
            agent_id=self.role.agent,
            base_url=config.api_base_url,
            token=os.environ.get(self.role.server_token_env) or None,
        )

    async def run(self, language: str, code: str, metadata: Mapping[str, Any], listeners: Listeners) -> Execution:
        sandbox = self.sandbox
        if sandbox is None:
            raise VmNotAvailable("The agent's sandbox has ended.", remediation="Give the command once more.")
        name = get_language(language).config.name
        subject = ExecutionSubject(
            agent_id=self.role.agent,
            execution_id=f"ag-{secrets.token_hex(8)}",
            vm_id=sandbox.sandbox_id,
            role=self.role.name,
            metadata=metadata,
        )
        if self._left:
            await _settled(sandbox)
            self._left = False
        async with self._guardrails.guarded(subject, name, code, listeners, []) as guarded:
            heard = guarded.listeners
            try:
                guarded.execution = await sandbox.run_code(
                    guarded.code, name, on_stdout=heard.on_stdout, on_stderr=heard.on_stderr, on_result=heard.on_result
                )
            except asyncio.CancelledError:
                self._left = True
                raise
        return guarded.seen

    async def check_prompt(self, context: PreLlmContext) -> str:
        return await self._guardrails.prompt(context, [])

    async def check_response(self, context: PostLlmContext) -> str:
        return await self._guardrails.answer(context, [])


def place_of(
    role: Role,
    *,
    engine: Engine | None,
    hooks: HookManager | Iterable[Hook],
    approver: Approver | None,
    progress: Progress,
) -> Runtime:
    """The place that a role names, or an engine where one is given.

    Raises:
        ValidationFailed: hooks or an approver together with an engine, which has its own.
        ConfigError: the settings or a hook is wrong.
    """
    if engine is not None and (hooks != () or approver is not None):
        raise ValidationFailed(
            "Give either `engine`, or `hooks` and `approver`: an engine has its own.", remediation="Drop one of them."
        )
    if engine is not None:
        return DirectRuntime(role, engine, owned=False, progress=progress)
    settings = settings_of(role)
    if settings.vm_execution.history.integration_mode == "direct":
        own = Engine(settings, hooks=hooks, approver=approver)
        return DirectRuntime(role, own, owned=True, progress=progress)
    return ServerRuntime(role, settings, _manager(settings, hooks, approver))


def settings_of(role: Role) -> Settings:
    """The settings in force, with what the role says over them, key by key; raises ConfigError."""
    said = role.vm_execution.model_dump(exclude_unset=True)
    return load_settings(vm_execution=said, auto_execute_threshold=role.auto_execute_threshold)


def _manager(settings: Settings, hooks: HookManager | Iterable[Hook], approver: Approver | None) -> HookManager:
    if isinstance(hooks, HookManager):
        hooks.approver = approver or hooks.approver
        return hooks
    policy = CodeBlockExtractor(config=settings.vm_execution).policy
    manager = manager_of(settings.hooks, settings.vm_execution, policy, approver=approver)
    for hook in hooks:
        manager.add_hook(hook)
    return manager


async def _settled(sandbox: AsyncSandbox) -> None:
    """Wait until nothing runs in a sandbox, at most for a while: what runs then is told that it is busy."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_SETTLE_SECONDS):
            while any(context.busy for context in await sandbox.list_code_contexts()):  # noqa: ASYNC110 (on a server)
                await asyncio.sleep(0.05)


async def _goes_on(sandbox: AsyncSandbox) -> bool:
    """Whether it can be used; a paused one is woken."""
    try:
        if not await sandbox.is_running():
            await sandbox.resume()
        return await sandbox.is_running()
    except VmExecutionError:
        return False
