"""Makes sandboxes and knows which exist."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

from emberbox.errors import SessionNotFound
from emberbox.images.store import Image
from emberbox.machines.base import MachineFactory
from emberbox.models import MachineLimits
from emberbox.sandbox.session import Session


class SandboxManager:
    """All sandboxes of one engine."""

    def __init__(self, factory: MachineFactory, boot_timeout: float) -> None:
        self._factory = factory
        self._boot_timeout = boot_timeout
        self._sessions: dict[str, Session] = {}
        self._images: dict[str, contextlib.ExitStack] = {}

    async def create(
        self,
        image: Image,
        limits: MachineLimits,
        *,
        envs: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Session:
        """Boot a machine and wait until its agent is ready. A failed or cancelled start leaves nothing behind."""
        with contextlib.ExitStack() as holding:
            holding.enter_context(image.in_use())
            machine = await self._factory.boot(image, limits)
            session = Session(machine, image, limits, envs=envs or {}, metadata=metadata or {}, on_closed=self._closed)
            try:
                await session.start(self._boot_timeout)
                session.set_timeout(timeout)
            except BaseException:
                await asyncio.shield(asyncio.ensure_future(session.kill()))
                raise
            self._sessions[session.id] = session
            self._images[session.id] = holding.pop_all()
        return session

    def get(self, sandbox_id: str) -> Session:
        """A live sandbox by its id."""
        try:
            return self._sessions[sandbox_id]
        except KeyError:
            raise SessionNotFound(f"There is no sandbox {sandbox_id!r:.80}.") from None

    def list(self) -> list[Session]:
        return list(self._sessions.values())

    async def close(self) -> None:
        """Kill them all."""
        await asyncio.gather(*(session.kill() for session in self.list()))

    def _closed(self, sandbox_id: str) -> None:
        self._sessions.pop(sandbox_id, None)
        holding = self._images.pop(sandbox_id, None)
        if holding is not None:
            holding.close()
