"""A machine by WebSocket: output as it is printed, two executions on one socket, one of them cancelled.

emberbox serve                                            (in another terminal)
python examples/websocket.py [http://127.0.0.1:8080]
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import httpx
from websockets.asyncio.client import connect


async def main(url: str) -> None:
    """Start a long one and a short one; cancel the long one when the short one is done."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        vm = (await client.post("/api/vms", json={"agent_id": "ada"})).json()["id"]
        async with connect(f"{url.replace('http', 'ws', 1)}/ws/{vm}", proxy=None) as socket:

            async def send(kind: str, **data: Any) -> None:
                await socket.send(json.dumps({"message_type": kind, "data": data}))

            endless = "import time\nfor n in range(10**9):\n    print('tick', n, flush=True)\n    time.sleep(0.05)"
            await send("LlmExecuteCode", execution_id="endless", language="python", code=endless)
            await send("LlmExecuteCode", execution_id="short", language="bash", code="echo hello; sleep 0.2")
            ended = 0
            async for message in socket:
                told = json.loads(message)
                data = told["data"]
                if told["message_type"] == "LlmExecutionOutput":
                    print(f"{data['execution_id']:8}", data["content"].strip())
                elif told["message_type"] == "LlmExecutionComplete":
                    print(f"{data['execution_id']:8}", "ended:", data["status"])
                    ended += 1
                    if data["execution_id"] == "short":
                        await send("CancelExecution", execution_id="endless")
                if ended == 2:
                    break
        await client.delete(f"/api/vms/{vm}")


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"))
    except httpx.ConnectError as error:
        sys.exit(f"No server there ({error}). Start one with `emberbox serve`.")
