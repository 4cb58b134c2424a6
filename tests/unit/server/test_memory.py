"""What clients may make the server keep in memory."""

from __future__ import annotations

from functools import partial

import pytest

from emberbox.errors import NoCapacity, TooManyRequests
from emberbox.models.server import ServerConfig
from emberbox.server.memory import SMALL, IncomingBudget, UnreadAnswers

MIB = 1 << 20


def test_requests_are_counted_until_they_are_done() -> None:
    budget = IncomingBudget(10 * MIB, 10 * MIB)
    first, second = budget.hold("ada"), budget.hold("ada")
    first.resize(6 * MIB)
    second.resize(4 * MIB)
    assert budget.total == 10 * MIB
    first.release()
    assert budget.total == 4 * MIB
    second.release()
    assert budget.total == 0


def test_one_caller_does_not_get_all_of_it() -> None:
    budget = IncomingBudget(10 * MIB, 4 * MIB)
    budget.hold("ada").resize(3 * MIB)
    refused = budget.hold("ada")
    with pytest.raises(TooManyRequests, match=r"3,145,728 bytes.*more than 4,194,304") as caught:
        refused.resize(2 * MIB)
    assert caught.value.details["retry_after"] == 1
    budget.hold("bob").resize(4 * MIB)
    assert budget.total == 7 * MIB


def test_all_callers_together_have_a_bound() -> None:
    budget = IncomingBudget(10 * MIB, 4 * MIB)
    for name in ("ada", "bob"):
        budget.hold(name).resize(4 * MIB)
    with pytest.raises(NoCapacity, match="more than 10,485,760"):
        budget.hold("eve").resize(3 * MIB)
    budget.hold("eve").resize(2 * MIB)


def test_small_requests_are_taken_when_all_of_it_is_held() -> None:
    budget = IncomingBudget(4 * MIB, 4 * MIB)
    budget.hold("ada").resize(4 * MIB)
    budget.hold("ada").resize(SMALL)
    assert budget.total == 4 * MIB


def test_what_goes_on_when_its_request_has_ended_is_counted_on() -> None:
    budget = IncomingBudget(4 * MIB, 4 * MIB)
    held = budget.hold("ada")
    held.resize(MIB)
    with held.kept():
        held.release()
        assert budget.total == MIB
    assert budget.total == 0


def test_one_request_of_the_greatest_length_always_fits() -> None:
    config = ServerConfig(max_body_bytes=8 * MIB, max_incoming_bytes=MIB, max_incoming_bytes_per_caller=MIB)
    budget = IncomingBudget.of(config)
    budget.hold("ada").resize(8 * MIB)
    with pytest.raises(TooManyRequests):
        budget.hold("ada").resize(SMALL + 1)


def test_the_oldest_answer_of_who_reads_least_is_cut() -> None:
    answers, cut = UnreadAnswers(10 * MIB), list[str]()
    for name, size in [("bob 1", 3), ("ada 1", 2), ("ada 2", 2), ("eve 1", 3)]:
        answers.add(name[:3], partial(cut.append, name)).grow(size * MIB)
    assert cut == []
    answers.add("eve", partial(cut.append, "eve 2")).grow(2 * MIB)
    assert cut == ["eve 1"]
    assert answers.total == 9 * MIB


def test_an_answer_that_is_read_makes_room() -> None:
    answers, cut = UnreadAnswers(4 * MIB), list[str]()
    first = answers.add("ada", lambda: cut.append("first"))
    first.grow(4 * MIB)
    first.grow(-3 * MIB)
    second = answers.add("ada", lambda: cut.append("second"))
    second.grow(3 * MIB)
    assert cut == []
    first.end()
    second.end()
    assert answers.total == 0
