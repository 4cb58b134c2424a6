"""A client of a server: code, an answer, history and rollback.

emberbox serve                                            (in another terminal)
python examples/client.py [http://127.0.0.1:8080]
"""

from __future__ import annotations

import asyncio
import sys

from emberbox import VmExecutionClient, VmExecutionError
from emberbox.models import VmExecutionConfig

ANSWER = "I'll run this:\n\n```python\nprint('the answer is', 6 * 7)\n```\n"


async def main(url: str) -> None:
    """Run some code there, and take it back."""
    async with VmExecutionClient(VmExecutionConfig(api_base_url=url)) as client:
        vm = await client.provision_vm("ada")
        await client.execute_python("ada", "balance = 100", vm.id)
        good = await client.create_snapshot(vm.id, "good")
        print("snapshot", good)

        bad = await client.execute_python("ada", "balance -= 500\nassert balance >= 0", vm.id)
        print("failed:", bad.error)
        await client.rollback_to_last_success(vm.id)
        print("balance:", (await client.execute_python("ada", "print(balance)", vm.id)).stdout.strip())

        found = await client.parse_and_execute("ada", ANSWER)
        print(found.execution_results[0].stdout.strip())
        for entry in (await client.query_history(vm.id)).history:
            print(entry.executed_at, entry.language, "exit", entry.exit_code)
        await client.kill_vm(vm.id)


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"))
    except VmExecutionError as error:
        sys.exit(f"{error.message} {error.remediation}")
