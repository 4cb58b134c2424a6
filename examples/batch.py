"""Several pieces of code in one request: one after the other with what each leaves behind, or each in a fork, at once.

emberbox serve                                            (in another terminal)
python examples/batch.py [http://127.0.0.1:8080]
"""

from __future__ import annotations

import sys

import httpx

SETUP = {"language": "python", "code": "data = [3, 1, 2]"}
IDEAS = [{"language": "python", "code": f"print({idea}(data))"} for idea in ("sorted", "sum", "max", "nonsense")]


def main(url: str) -> None:
    """Set up once, then try four ideas at once, none of which sees the others."""
    with httpx.Client(base_url=url, timeout=60) as client:
        one = client.post("/api/v2/execute/batch", json={"agent_id": "ada", "code_blocks": [SETUP]}).json()
        tried = {
            "agent_id": "ada",
            "vm_id": one["vm_id"],
            "code_blocks": IDEAS,
            "execution_mode": "parallel",
        }
        answer = client.post("/api/v2/execute/batch", json=tried).json()
        for result in answer["results"]:
            run = result["execution"]
            print(result["status"], run["stdout"].strip() or run["error"])
        print(f"{answer['total_duration_ms']:.0f} ms in all")
        client.delete(f"/api/vms/{one['vm_id']}")


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080")
    except httpx.ConnectError as error:
        sys.exit(f"No server there ({error}). Start one with `emberbox serve`.")
