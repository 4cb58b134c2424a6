"""What computes for long lets others be served: turns of the event loop are counted while it goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from typing import Any, TypeVar, cast

from emberbox.engine.guardrails import FilteredOutput
from emberbox.hooks.filters import FilterChain
from emberbox.hooks.output_sanitizer import OutputSanitizerHook
from emberbox.machines.channel import Stream
from emberbox.models import Result
from emberbox.sandbox.files import GuestFiles, HasChannel
from emberbox.sandbox.listeners import Listeners
from emberbox.sandbox.outcome import MOST_VALUES, TOO_MANY_VALUES, ExecutionCollector
from emberbox.sandbox.work import Work, take

T = TypeVar("T")


async def turns_during(work: Awaitable[T]) -> tuple[int, T]:
    """How often others had their turn."""
    task = asyncio.ensure_future(work)
    turns = 0
    while not task.done():
        turns += 1
        await asyncio.sleep(0)
    return turns, task.result()


class Listed:
    """A sandbox whose directory has so many files."""

    def __init__(self, count: int) -> None:
        row = {"type": "file", "size": 1, "mode": 0o644, "mtime": 1.5e9, "target": None}
        self._payload = json.dumps([{**row, "path": f"/f{n}"} for n in range(count)]).encode()

    def open_channel(self) -> Listed:
        return self

    async def call(self, op: str, payload: bytes = b"", **fields: object) -> tuple[dict[str, Any], bytes]:
        del op, payload, fields
        return {"truncated": False}, self._payload


async def test_a_long_list_is_made_in_parts() -> None:
    turns, entries = await turns_during(GuestFiles(cast("HasChannel", Listed(10_000))).list("/"))
    assert len(entries) == 10_000
    assert turns >= 20


def collector() -> ExecutionCollector:
    return ExecutionCollector(output_limit=1 << 20, results_limit=8 << 20)


async def shown(*values: object) -> tuple[int, list[Result]]:
    into = collector()
    turns = 0
    for value in values:
        payload = json.dumps({"application/json": value}).encode()
        more, _ = await turns_during(take(into, {"id": 1, "ev": "result", "main": True}, payload, Listeners()))
        turns += more
    return turns, into.results


async def test_a_result_of_many_values_is_read_in_a_thread() -> None:
    turns, results = await shown([[n, str(n)] for n in range(20_000)])
    assert len(results[0].json) == 20_000
    assert turns >= 3


async def test_results_of_more_values_than_can_be_read_in_a_moment_are_left_out_by_name() -> None:
    many = list(range(MOST_VALUES * 3 // 4))
    _, results = await shown(many, many, [1])
    assert results[0].json == many
    assert [(one.json, one.text, one.is_main_result) for one in results[1:]] == [(None, TOO_MANY_VALUES, True)] * 2


class Burst:
    """Events of a request that have all come already."""

    number = 1

    def __init__(self, count: int) -> None:
        self._left = count

    async def __anext__(self) -> tuple[dict[str, Any], bytes]:
        if not self._left:
            raise StopAsyncIteration
        self._left -= 1
        return {"id": 1, "ev": "stdout"}, b"x"


async def test_a_burst_of_events_is_taken_in_parts() -> None:
    async def taken() -> int:
        return len([event async for event in Work(cast("Stream", Burst(3200)), 60)])

    turns, count = await turns_during(taken())
    assert count == 3200
    assert turns >= 200


async def test_output_is_filtered_in_a_thread() -> None:
    chain = FilterChain()
    made = OutputSanitizerHook().output_filter(cast("Any", None))
    chain.add("sanitizer", lambda: made)
    told: list[str] = []
    filtered = FilteredOutput(chain, Listeners(told.append))
    text = "".join(f"password = {n}abcdefgh, token: {n}\n" for n in range(3000))
    turns, _ = await turns_during(filtered.listeners.text("stdout", text))
    await filtered.close(ended=True)
    assert turns >= 5
    assert "[REDACTED:" in "".join(told)
