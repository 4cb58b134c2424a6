"""A long session in a shell on a server, with a snapshot before the risky step.

emberbox serve                                            (in another terminal)
python examples/session_adapter.py [http://127.0.0.1:8080]
"""

from __future__ import annotations

import asyncio
import sys
import tempfile

from emberbox import DirectSessionAdapter, VmExecutionError


async def main(url: str) -> None:
    """Build something, break it, go back."""
    with tempfile.TemporaryDirectory() as notes:
        async with DirectSessionAdapter(notes, url) as adapter:
            session = await adapter.get_or_create_session("build", "ada")
            await adapter.execute_command_direct(session, "mkdir -p project && cd project && echo v1 > version")
            before = await adapter.create_snapshot_direct(session, "before-the-upgrade")

            output, code = await adapter.execute_command_direct(session, "echo v2 > version; ./migrate")
            print("upgrade:", output.strip(), "exit", code)
            if code != 0:
                await adapter.rollback_direct(session, before)
            output, _ = await adapter.execute_command_direct(session, "pwd; cat version")
            print(output.strip())
            print(await adapter.get_connection_info(session))
            await adapter.close_session(session)


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"))
    except VmExecutionError as error:
        sys.exit(f"{error.message} {error.remediation}")
