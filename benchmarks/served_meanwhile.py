"""Is everybody else served while one caller asks for the most that the API takes? The heaviest request of each family
of endpoints is sent to a server of its own, one after the other; another process asks `/health` all the time, and the
table says how long its slowest answer took meanwhile. Ends with 1 where one took longer than `--limit`."""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
from websockets.sync.client import connect

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from served import Served

MOST = (16 << 20) - 2000
"""Bytes of a body, with room for what is around."""
ANSWERS = {
    "fences": "Run:\n\n```python\nprint(1)\n```\n\n" * (MOST // 40),
    "one fence": "Run this:\n```python\n" + "x = 1\n" * (MOST // 8),
    "tags": "<execute_python>" * (MOST // 17),
    "inline": "`a` " * (MOST // 5),
    "quotes": "> " * (MOST // 3),
    "lists": "- a\n" * (MOST // 6),
    "json": '[{"name": "x"}, ' * (MOST // 24),
    "escapes": '\\"' * (MOST // 6),
}
ENTRIES = 3000
"""Executions that the history is filled with; each printed so many characters: """
PRINTED = 100_000


def watch(url: str, seen: multiprocessing.Queue[tuple[float, float]]) -> None:
    """Ask all the time; tell when each question was put, and how long its answer took."""
    with httpx.Client(base_url=url, trust_env=False, timeout=120) as client:
        while True:
            began = time.monotonic()
            client.get("/health").raise_for_status()
            seen.put((began, time.monotonic() - began))
            time.sleep(0.003)


class Bench:
    """A server, and the requests that are sent to it."""

    def __init__(self, server: Served) -> None:
        self.server = server
        self.api = httpx.Client(base_url=server.url, trust_env=False, timeout=600)
        self.vm = str(self._made("/api/vms", {"agent_id": "ada"})["id"])
        self.rows: list[tuple[str, str, float, float]] = []
        self._seen: multiprocessing.Queue[tuple[float, float]]

    def _made(self, path: str, body: dict[str, Any]) -> Any:
        answer = self.api.post(path, json=body)
        answer.raise_for_status()
        return answer.json()

    def run(self, only: str) -> None:
        for name, case in self.cases().items():
            if only in name:
                self._measure(name, case)

    def _measure(self, name: str, case: Callable[[], object]) -> None:
        self._drain()
        began = time.monotonic()
        try:
            told = str(case())
        except Exception as exc:  # noqa: BLE001 (the table tells)
            told = f"{type(exc).__name__}: {exc}"[:60]
        ended = time.monotonic()
        time.sleep(0.3)
        worst = max((took for at, took in self._drain() if at <= ended), default=0.0)
        megabytes = psutil.Process(self.server.pid).memory_info().rss >> 20
        print(f"| {name} | {told} | {ended - began:.2f} s | {worst * 1000:.0f} ms | {megabytes} MB |", flush=True)
        self.rows.append((name, told, ended - began, worst))

    def _drain(self) -> list[tuple[float, float]]:
        return [self._seen.get() for _ in range(self._seen.qsize())]

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        spawned = multiprocessing.get_context("spawn")
        self._seen = spawned.Queue()
        watcher = spawned.Process(target=watch, args=(self.server.url, self._seen), daemon=True)
        watcher.start()
        try:
            self._seen.get(timeout=300)
            yield
        finally:
            watcher.terminate()
            watcher.join()

    # --- the requests ---------------------------------------------------------------------------------------------

    def post(self, path: str, body: Any) -> Callable[[], object]:
        raw = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()

        def send() -> object:
            answer = self.api.post(path, content=raw, headers={"Content-Type": "application/json"})
            return f"{answer.status_code}, {len(answer.content) >> 10} KiB"

        return send

    def get(self, where: str, **params: Any) -> Callable[[], object]:
        def send() -> object:
            answer = self.api.get(where, params=params)
            return f"{answer.status_code}, {len(answer.content) >> 10} KiB"

        return send

    def code(self, text: str, language: str = "python") -> Callable[[], object]:
        return self.post("/api/llm/execute", {"vm_id": self.vm, "language": language, "code": text})

    def bash(self, text: str, seconds: float = 120) -> None:
        body = {"cmd": text, "timeout_seconds": seconds}
        self.api.post(f"/api/vms/{self.vm}/commands", json=body).raise_for_status()

    def socket(self, path: str, text: str) -> Callable[[], object]:
        def send() -> object:
            with connect(self.server.url.replace("http", "ws") + path, max_size=None, compression=None) as line:
                line.send(text)
                while True:
                    raw = line.recv(timeout=120)
                    told = json.loads(raw)
                    kind = told.get("message_type") or told.get("response_type")
                    if "Output" not in kind and "output" not in kind:
                        return f"{kind}, {len(raw) >> 10} KiB"

        return send

    def cases(self) -> dict[str, Callable[[], object]]:
        """Requests by name, in the order in which they are sent."""
        return (
            self._code_that_is_checked()
            | self._bodies()
            | self._machines()
            | self._outputs()
            | self._batches()
            | self._long_fields()
            | self._files_and_diffs()
            | self._looks()
            | self._sockets()
            | self._history()
            | self._extractions()
        )

    def _code_that_is_checked(self) -> dict[str, Callable[[], object]]:
        most = 99_000  # characters of code
        deep = "(" * 190 + "1" + ")" * 190
        hostile = {
            "long": ("python", "x = 1\n" * (most // 6)),
            "operators": ("python", "1" + "+1" * (most // 2)),
            "brackets": ("python", "[" * (most // 2) + "]" * (most // 2)),
            "deep calls": ("python", "f(" * (most // 3) + ")" * (most // 3)),
            "attributes": ("python", "a" + ".b" * (most // 2)),
            "dangers": ("python", "eval(x)\n" * (most // 8)),
            "one error": ("python", "é(" * (most // 2)),
            "secrets": ("python", "password = 'abc123def'\n" * (most // 24)),
            "bash words": ("bash", ": rm -rf /tmp/x; " * (most // 17)),
            "bash nested": ("bash", "$(" * (most // 3) + ")" * (most // 3)),
            "bash quotes": ("bash", "echo '" + "a' 'b" * (most // 6) + "'"),
            "javascript": ("javascript", "eval(x);" * (most // 8)),
            "javascript nested": ("javascript", "[" * (most // 2) + "]" * (most // 2)),
            "javascript functions": ("javascript", "()=>" * (most // 4) + "1"),
            "rust": ("rust", "fn f() { unsafe {} }\n" * (most // 22)),
            "parentheses": ("python", f"{deep}\n" * (most // len(deep) - 1)),
        }
        return {f"execute, {name}": self.code(text, language) for name, (language, text) in hostile.items()}

    def _extractions(self) -> dict[str, Callable[[], object]]:
        lengths = {"16 MB": MOST, "1 MB": 1 << 20}
        return {
            f"extraction {length}, {name}": self.post(
                "/api/llm/parse-execute", {"llm_response": text[:most], "auto_execute": False}
            )
            for length, most in lengths.items()
            for name, text in ANSWERS.items()
        }

    def _bodies(self) -> dict[str, Callable[[], object]]:
        bodies = {
            "empty lists": b"[" + b"[]," * (MOST // 3) + b"[]]",
            "integers": b"[" + (b"1" * 4000 + b",") * (MOST // 4001 - 1) + b"1]",
            "a text": json.dumps({"agent_id": "a", "language": "x", "code": "y" * MOST}).encode(),
            "unknown keys": json.dumps({f"k{n}": n for n in range(99_000)}).encode(),
            "requirements": json.dumps({"language": "python", "code": "1", "requirements": ["a"] * 99_000}).encode(),
            "wrong requirements": json.dumps(
                {"language": "python", "code": "1", "requirements": [1] * 99_000}
            ).encode(),
            "metadata": json.dumps(
                {"language": "x", "code": "1", "metadata": {f"k{n}": [n] for n in range(49_000)}}
            ).encode(),
        }
        return {f"body, {name}": self.post("/api/llm/execute", raw) for name, raw in bodies.items()}

    def _machines(self) -> dict[str, Callable[[], object]]:
        vm = self.vm
        names = {f"V{n}": "x" for n in range(90_000)}
        return {
            "stdin 12 MB": self.post(
                f"/api/vms/{vm}/run", {"language": "python", "code": "1", "stdin": "QUJD" * (3 << 20)}
            ),
            "run, 90,000 arguments": self.post(
                f"/api/vms/{vm}/run", {"language": "python", "code": "1", "args": ["x"] * 90_000}
            ),
            "run, 90,000 variables": self.post(
                f"/api/vms/{vm}/run", {"language": "python", "code": "1", "envs": names}
            ),
            "vms, 90,000 variables": self.post("/api/vms", {"envs": names}),
            "vms, 90,000 metadata": self.post("/api/vms", {"metadata": names}),
            "command, 90,000 words": self.post(f"/api/vms/{vm}/commands", {"cmd": ["true"] + ["x"] * 90_000}),
            "command of 16 MB": self.post(f"/api/vms/{vm}/commands", {"cmd": "true " + "x" * (MOST - 100)}),
        }

    def _outputs(self) -> dict[str, Callable[[], object]]:
        vm = self.vm
        return {
            "output 50 MB": self.code("print('x' * 79 + '\\n', end='') or [print('y' * 99999) for _ in range(500)]"),
            "output, small writes": self.code("import os\nfor n in range(20000): os.write(1, b'x')"),
            "output, a stream": lambda: self._stream("for n in range(30000): print(n)"),
            "output of a command": self.post(f"/api/vms/{vm}/commands", {"cmd": "seq 3000000"}),
            "results": self.code(
                "from IPython.display import display\nfor n in range(300): display({'a': list(range(1000))})"
            ),
            "a result of 8 MB": self.code("class A:\n def _repr_html_(self): return 'x' * (8 << 20)\nA()"),
        }

    def _batches(self) -> dict[str, Callable[[], object]]:
        vm = self.vm
        blocks = [{"language": "bash", "code": "true"}] * 100
        wrong = [{"language": 1, "code": [], "x": n} for n in range(30_000)]
        return {
            "batch, 100 blocks": self.post(
                "/api/v2/execute/batch", {"agent_id": "ada", "vm_id": vm, "code_blocks": blocks}
            ),
            "batch, 30,000 blocks": self.post(
                "/api/v2/execute/batch",
                {"agent_id": "ada", "vm_id": vm, "code_blocks": [{"language": "x", "code": "1"}] * 30_000},
            ),
            "batch, wrong blocks": self.post("/api/v2/execute/batch", {"agent_id": "ada", "code_blocks": wrong}),
            "batch, one large block": self.post(
                "/api/v2/execute/batch",
                {
                    "agent_id": "ada",
                    "vm_id": vm,
                    "code_blocks": [{"language": "python", "code": "x = 1\n" * 2_500_000}],
                },
            ),
        }

    def _long_fields(self) -> dict[str, Callable[[], object]]:
        vm = self.vm
        return {
            "rollback, 90,000 paths": self.post(
                f"/api/vms/{vm}/rollback", {"target": "last-success", "paths": [f"p{n}" for n in range(90_000)]}
            ),
            "template of 16 MB": self.post("/api/vms", {"vm_type": "x" * (MOST - 100)}),
            "approval of 16 MB": self.post(
                "/api/approvals/ap-none", {"approve": True, "edited_code": "x" * (MOST - 100)}
            ),
            "session, long name": self.post("/sessions", {"name": "x" * (MOST - 100)}),
            "session, command of 16 MB": lambda: self._session("x" * (MOST - 100)),
        }

    def _files_and_diffs(self) -> dict[str, Callable[[], object]]:
        vm = self.vm
        return {
            "file of 64 MB up": lambda: self._upload(64 << 20),
            "file of 64 MB down": self.get(f"/api/vms/{vm}/files", path="big"),
            "list of 100,000 files": self._files,
            "diff, 18,000 files": lambda: self._diff("mkdir other; cd other; seq 18000 | xargs touch"),
            "diff, large files": lambda: self._diff("seq 700000 > a; seq 700000 | sort -r > b; seq 1 2 900000 > c"),
            "diff, hostile files": lambda: self._diff(
                "for n in $(seq 40); do shuf -i 1-60000 > h$n; done; yes a | head -c 4000000 > y"
            ),
        }

    def _looks(self) -> dict[str, Callable[[], object]]:
        return {
            "figures": self.get("/metrics"),
            "pool": self.get("/api/v2/vm-pool/status"),
            "schema": self.get("/openapi.json"),
            "machines": self.get("/api/vms"),
        }

    def _sockets(self) -> dict[str, Callable[[], object]]:
        vm = self.vm
        return {
            "socket, a text of 16 MB": self.socket("/ws", json.dumps({"command_type": "x" * (MOST - 100)})),
            "socket, empty lists": self.socket("/ws", "[" + "[]," * (MOST // 3) + "[]]"),
            "socket, code of 16 MB": self.socket(
                f"/ws/{vm}",
                json.dumps(
                    {"message_type": "LlmExecuteCode", "data": {"language": "python", "code": "x" * (MOST - 200)}}
                ),
            ),
            "socket, unknown keys": self.socket(
                "/ws", json.dumps({"command_type": "execute_code", "data": {f"k{n}": n for n in range(90_000)}})
            ),
            "socket, answer of 12 MB": self.socket(
                f"/ws/{vm}",
                json.dumps(
                    {
                        "message_type": "LlmParseExecute",
                        "data": {"llm_response": ANSWERS["fences"], "auto_execute": False},
                    }
                ),
            ),
            "socket, output": self.socket(
                f"/ws/{vm}",
                json.dumps(
                    {
                        "message_type": "LlmExecuteCode",
                        "data": {"language": "python", "code": "for n in range(30000): print('x' * 50)"},
                    }
                ),
            ),
        }

    def _history(self) -> dict[str, Callable[[], object]]:
        vm = self.vm
        return {
            "history, filled": self.fill,
            "history, 50": self.get("/api/history"),
            "history, 10,000": self.get("/api/history", limit=10_000),
            "history, failures": self.get("/api/history", limit=10_000, failures_only=True),
            "history of a machine": self.get("/api/vms/sb-full/history", limit=10_000),
            "history, verified": self.get("/api/history/verify"),
            "socket, history": self.socket(
                f"/ws/{vm}", json.dumps({"message_type": "QueryHistory", "data": {"limit": 10_000}})
            ),
        }

    def _stream(self, code: str) -> object:
        body = {"vm_id": self.vm, "language": "python", "code": code}
        with self.api.stream("POST", "/api/llm/execute?stream=true", json=body) as answer:
            return f"{answer.status_code}, {sum(len(piece) for piece in answer.iter_raw()) >> 10} KiB"

    def _session(self, command: str) -> object:
        self.api.post("/sessions", json={"name": "s"})
        return self.api.post("/sessions/s/execute", json={"command": command}).status_code

    def _upload(self, size: int) -> object:
        path = f"/api/vms/{self.vm}/files"
        return self.api.put(path, params={"path": "big"}, content=b"x" * size).status_code

    def _files(self) -> object:
        self.bash("mkdir -p many; cd many; seq 100000 | xargs touch")
        return self.get(f"/api/vms/{self.vm}/files/list", path="many")()

    def _diff(self, change: str) -> object:
        self.vm = str(self._made("/api/vms", {"agent_id": "ada"})["id"])  # what was changed before is not its concern
        point = self._made(f"/api/vms/{self.vm}/snapshots", {})["snapshot_id"]
        self.bash(change)
        return self.post(f"/api/vms/{self.vm}/diff", {"before": point})()

    def fill(self) -> object:
        """Fill the history, as many executions with much output would: one more row for each, copied."""
        self.code("print('x' * 50000)")()
        database = sqlite3.connect(self.server.state / "history.db", timeout=60)
        with contextlib.closing(database), database:
            database.row_factory = sqlite3.Row
            row = dict(database.execute("SELECT * FROM history_entries ORDER BY number DESC LIMIT 1").fetchone())
            names, marks = ", ".join(row), ", ".join("?" * len(row))
            for number in range(ENTRIES):
                new = row | {"id": f"ex-{number:x}", "number": -number, "stdout": "\x1bé x" * (PRINTED // 4)}
                new["success"] = number % 2
                database.execute(f"INSERT INTO history_entries ({names}) VALUES ({marks})", list(new.values()))  # noqa: S608
        return f"{ENTRIES} entries"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, default=250.0, help="milliseconds")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--template", default="minimal", help="what its machines start from")
    given = parser.parse_args()
    server = Served({
        "VM_EXECUTION__HISTORY__MAX_HISTORY_ENTRIES": "100000",
        "VM_EXECUTION__DEFAULT_VM_TYPE": given.template,
    })  # fmt: skip
    server.start()
    try:
        bench = Bench(server)
        print("| request | answer | it took | slowest /health | memory |\n|---|---|---|---|---|")
        with bench.watched():
            bench.run(given.only)
        server.end_machines()
    finally:
        server.finish()
    slow = [f"{name}: {worst * 1000:.0f} ms" for name, _, _, worst in bench.rows if worst * 1000 > given.limit]
    print("\n".join(["", *slow]) if slow else f"\nall within {given.limit:g} ms")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
