"""Rows about the server: small executions by HTTP, many agents at once, how soon output arrives. The server is a
process of its own on this machine; so is the load, which takes its share of the processor."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator

from emberbox.bench.lab import Lab, ours, run
from emberbox.bench.measure import Clock, Contender, interleave, summarise
from emberbox.bench.results import IN_PROCESS, OURS, Aim, Figure, Row
from emberbox.clients.vm_execution import VmExecutionClient
from emberbox.errors import ExecutionFailed, VmNotAvailable
from emberbox.models import VmExecuteRequest, VmExecutionConfig

AGENTS = 20
_START_SECONDS = 60.0
_STREAM = """\
import time
for _ in range({count}):
    print(time.time(), flush=True)
    time.sleep(0.02)
"""


@contextlib.asynccontextmanager
async def _server(lab: Lab) -> AsyncIterator[VmExecutionClient]:
    """A client of a server that lives meanwhile, with a history of its own."""
    own = {
        "EMBERBOX_STATE_DIR": str(lab.work / "server"),
        "EMBERBOX_RUN_DIR": str(lab.run),
        "EMBERBOX_CACHE_DIR": str(lab.settings.cache_dir),
        "EMBERBOX_SERVER__MAX_CONCURRENT_EXECUTIONS": str(4 * AGENTS),
        "EMBERBOX_SERVER__REQUESTS_PER_SECOND": "100000",
        "EMBERBOX_SERVER__LOG_LEVEL": "warning",
        "EMBERBOX_VM_EXECUTION__DEFAULT_VM_TYPE": lab.template or lab.settings.vm_execution.default_vm_type,
        "COLUMNS": "200",
    }
    argv = [sys.executable, "-m", "emberbox.cli.entry", "serve", "--port", "0", "--host", "127.0.0.1"]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *argv, env=os.environ | own, stderr=pipe, stdout=asyncio.subprocess.DEVNULL, start_new_session=True
    )
    try:
        url = await _address(process)
        async with VmExecutionClient(VmExecutionConfig(api_base_url=url)) as client:
            yield client
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.communicate()


async def _address(process: asyncio.subprocess.Process) -> str:
    """Where it serves, as it says itself."""
    said = ""
    assert process.stderr is not None  # noqa: S101 (it was piped)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_START_SECONDS):
            while line := (await process.stderr.readline()).decode("utf-8", "replace"):
                said += line
                if (found := re.search(r"serves at (http://\S+)", line)) is not None:
                    return found[1]
    raise VmNotAvailable(f"The server did not start: {said[-500:]}")


async def _once(client: VmExecutionClient, agent: str) -> None:
    answer = await client.execute_python(agent, "1+1")
    if not answer.results or answer.results[0].text != "2":
        raise ExecutionFailed(f"The server answered {answer.error or answer.stdout!r:.80} instead of 2.")


async def serving(lab: Lab) -> list[Row]:
    """Rows `http`, `http-rate` and `stream`."""
    rows: list[Row] = []
    async with _server(lab) as client:
        if lab.wants("http"):
            rows.append(await _small(lab, client))
        if lab.wants("http-rate"):
            rows.append(await _rate(lab, client))
        if lab.wants("stream"):
            rows.append(await _stream(lab, client))
    return rows


async def _small(lab: Lab, client: VmExecutionClient) -> Row:
    """Row `http`: as `live`, by HTTP; beside it the same engine in process."""
    async with lab.engine() as engine, lab.sandbox(engine) as session:

        async def by_http() -> float:
            clock = Clock()
            await _once(client, "bench")
            return clock.ms()

        async def in_process() -> float:
            clock = Clock()
            await run(engine, session, "1+1")
            return clock.ms()

        contenders = [Contender(OURS, by_http), Contender(IN_PROCESS, in_process)]
        rounds = lab.count("executions by HTTP", 300, 50)
        samples = await interleave(contenders, rounds, warm_up=10, tick=lab.tick)
    others = [Figure(IN_PROCESS, summarise(samples[IN_PROCESS]))]
    return Row("http", 'run_code("1+1") through HTTP', "ms", ours(samples[OURS]), Aim(most=5), others)


async def _rate(lab: Lab, client: VmExecutionClient) -> Row:
    """Row `http-rate`: small executions a second, by many agents at once, each in a machine of its own. The client
    takes its part of the same processor."""
    seconds = lab.count("seconds of load by HTTP", 6, 2)
    await asyncio.gather(*(_once(client, f"agent-{number}") for number in range(AGENTS)))
    rates = []
    for _ in range(lab.count("rounds of load by HTTP", 3, 1)):
        clock, done = Clock(), 0

        async def agent(name: str, until: Clock = clock) -> int:
            count = 0
            while until.ms() < seconds * 1000:
                await _once(client, name)
                count += 1
            return count

        done = sum(await asyncio.gather(*(agent(f"agent-{number}") for number in range(AGENTS))))
        rates.append(done / (clock.ms() / 1000))
    title = f"small executions through HTTP, {AGENTS} agents at once"
    return Row("http-rate", title, "1/s", ours(rates), Aim(least=200))


async def _stream(lab: Lab, client: VmExecutionClient) -> Row:
    """Row `stream`: from `print` in the sandbox to the client's callback, by the clocks of both, which are one."""
    count = lab.count("streamed lines", 100, 30)
    late: list[float] = []

    def heard(text: str) -> None:
        late.extend((time.time() - float(line)) * 1000 for line in text.split())

    request = VmExecuteRequest(agent_id="bench", language="python", code=_STREAM.format(count=count))
    await client.execute_code(request, on_stdout=heard)
    if len(late) != count:
        raise ExecutionFailed(f"{len(late)} lines of {count} came.")
    return Row("stream", "from print() to the client, by a stream", "ms", ours(late), Aim(most=100))
