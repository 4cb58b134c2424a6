"""History, automatic snapshots and rollback by a policy of one's own, in both modes.

python examples/bridge.py                                 (direct: in this process)
emberbox serve                                            (in another terminal, for http)
python examples/bridge.py http://127.0.0.1:8080
"""

from __future__ import annotations

import asyncio
import sys

from emberbox import Engine, FcctlBridge, VmExecutionClient, VmExecutionError
from emberbox.engine import ExecuteRequest
from emberbox.models import HistoryConfig, VmExecuteRequest, VmExecuteResponse, VmExecutionConfig

STEPS = ("total = 10", "total += 5", "total /= 0", "print('total', total)")
POLICY = {"snapshot_on_execution": True, "auto_rollback_on_failure": True}


async def direct() -> None:
    """Machines of this process."""
    async with Engine() as engine:
        sandbox = await engine.create_sandbox(agent_id="ada")

        async def run(request: VmExecuteRequest) -> VmExecuteResponse:
            return VmExecuteResponse.of(await engine.execute(ExecuteRequest(sandbox, request.language, request.code)))

        bridge = FcctlBridge(HistoryConfig(integration_mode="direct", **POLICY), engine=engine)
        async with bridge:
            await steps(bridge, sandbox.id, run)


async def http(url: str) -> None:
    """Machines of a server."""
    async with VmExecutionClient(VmExecutionConfig(api_base_url=url)) as client:
        vm = await client.provision_vm("ada")
        async with FcctlBridge(HistoryConfig(integration_mode="http", **POLICY), url) as bridge:
            await steps(bridge, vm.id, client.execute_code)
        await client.kill_vm(vm.id)


async def steps(bridge: FcctlBridge, vm_id: str, run) -> None:  # type: ignore[no-untyped-def]
    """Run the steps; after one that fails, the machine is as it was before it."""
    for code in STEPS:
        request = VmExecuteRequest(agent_id="ada", language="python", code=code, vm_id=vm_id)
        response = await run(request)
        snapshot = await bridge.track_execution(vm_id, "ada", request, response)
        back = await bridge.auto_rollback_on_failure(vm_id, "ada", response)
        print(f"{code:24}", response.error or response.stdout.strip() or "ok", "→", snapshot)
        if back is not None:
            print(" " * 24, back.message)
    print("recorded:", (await bridge.query_history(vm_id, "ada")).total)


if __name__ == "__main__":
    try:
        asyncio.run(http(sys.argv[1]) if len(sys.argv) > 1 else direct())
    except VmExecutionError as error:
        sys.exit(f"{error.message} {error.remediation}")
