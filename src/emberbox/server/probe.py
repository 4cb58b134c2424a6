"""Readiness: a machine answered lately."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from prometheus_client.core import GaugeMetricFamily

from emberbox.engine import Engine
from emberbox.errors import ExecutionFailed, NoCapacity, VmExecutionError, VmNotAvailable
from emberbox.models.service import Readiness
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sandbox.listeners import Listeners, RunOptions
from emberbox.server.metrics import gauge
from emberbox.server.service import PROBE, Service

_PROBE_SECONDS = 30.0
_RETRY_SECONDS = 5.0
"""After a failure, a client that asks again gets the same answer for so long: it needs no token to ask."""
_CODE = {"python": "print(6 * 7)", "javascript": "console.log(6 * 7)", "bash": "echo $((6 * 7))"}


class Prober:
    """Asks a machine whether it works, at most every `probe_seconds`; many who ask at once wait for one answer.

    Args:
        service: whose engine is asked.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._asking: asyncio.Task[Readiness] | None = None
        self._known: tuple[float, Readiness] | None = None
        self._failed: tuple[float, VmNotAvailable] | None = None

    async def readiness(self) -> Readiness:
        """The newest answer.

        Raises:
            VmNotAvailable: no machine answers, or the server is stopping.
        """
        if self._service.draining:
            raise VmNotAvailable("The server is stopping.", remediation="Ask another one.")
        if self._known is not None and time.monotonic() - self._known[0] < self._service.config.probe_seconds:
            return self._known[1]
        if self._failed is not None and time.monotonic() - self._failed[0] < _RETRY_SECONDS:
            raise self._failed[1]
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(_retrieved)
        return await asyncio.shield(self._asking)

    async def _ask(self) -> Readiness:
        try:
            ready = await self._answered()
        except VmExecutionError as exc:
            failed = VmNotAvailable(f"No machine answers: {exc.message}", remediation=exc.remediation)
            self._failed = (time.monotonic(), failed)
            raise failed from exc
        self._known, self._failed = (time.monotonic(), ready), None
        return ready

    def gauges(self) -> Iterator[GaugeMetricFamily]:
        """What the last look said; nothing where nobody has looked."""
        if self._known is not None or self._failed is not None:
            good = self._failed is None
            yield gauge("emberbox_ready", "Whether a machine answered at the last look.", [({}, good)])

    async def _answered(self) -> Readiness:
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._service.settings.boot_timeout_seconds + _PROBE_SECONDS):
                backend = await _answer(self._service.engine)
        except TimeoutError as exc:
            raise VmNotAvailable("A machine did not answer in time.") from exc
        spent = time.monotonic() - began
        return Readiness(backend=backend, answered_at=datetime.now(UTC), answer_ms=round(spent * 1000, 3))

    async def close(self) -> None:
        """Ask nothing more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])


async def _answer(engine: Engine) -> str:
    """The back end of a machine that has answered. Not an execution of anybody's: it is in no history, and no hook is
    asked."""
    if len(engine.live_sandboxes()) >= engine.settings.max_sandboxes:  # it would wait for a place
        return await _one_of(engine.live_sandboxes())
    try:
        session = await engine.create_sandbox(agent_id=PROBE, durable=False)
    except NoCapacity:
        return await _one_of(engine.live_sandboxes())
    try:
        languages = session.image.template.languages
        language = next(one for one in ("python", "bash", "javascript") if one in languages)
        run = await session.runner.run_code(language, _CODE[language], RunOptions(timeout=_PROBE_SECONDS), Listeners())
        if run.stdout != "42\n":
            raise ExecutionFailed(f"A machine said {run.stdout!r:.80} instead of 42.")
        return session.machine.backend
    finally:
        await asyncio.shield(asyncio.ensure_future(session.kill()))


async def _one_of(sessions: Sequence[SandboxInstance]) -> str:
    """There is no place for one more: to be full is to work, if those that there are do."""
    for session in sessions:
        with contextlib.suppress(VmExecutionError):
            await session.call("metrics")
            return session.machine.backend
    raise VmNotAvailable("There is no place for a machine, and none of those that there are answers.")


def _retrieved(task: asyncio.Task[Readiness]) -> None:
    """Somebody may ask for the outcome, or nobody."""
    if not task.cancelled():
        task.exception()
