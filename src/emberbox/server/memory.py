"""What clients make the server keep in memory: long requests until they are done, and answers until they are read. Both
have bounds, for all callers together and for each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from emberbox.errors import NoCapacity, TooManyRequests
from emberbox.models.server import ServerConfig

SMALL = 64 << 10
"""Bytes of a request or an answer that are not counted: the number of connections bounds them."""


def caller_of(scope: Mapping[str, Any]) -> str:
    """Who is counted for what a request or a socket holds."""
    principal = scope.get("state", {}).get("principal")
    if principal is not None:
        return str(principal.id)
    client = scope.get("client")
    return f"address:{client[0] if client else 'local'}"


class IncomingBudget:
    """Bytes of long requests and messages that are being received or worked at.

    Args:
        most: of all callers.
        most_each: of one caller.
    """

    def __init__(self, most: int, most_each: int) -> None:
        self._most = most
        self._most_each = most_each
        self._held: Counter[str] = Counter()
        self.total = 0

    @classmethod
    def of(cls, config: ServerConfig) -> IncomingBudget:
        """The one of the settings; a single request of the greatest length always fits."""
        least = config.max_body_bytes
        return cls(max(config.max_incoming_bytes, least), max(config.max_incoming_bytes_per_caller, least))

    def hold(self, caller: str) -> Held:
        """Nothing yet, for this caller."""
        return Held(self, caller)

    def change(self, caller: str, by: int) -> None:
        """Hold more, or less.

        Raises:
            TooManyRequests: the caller has its share.
            NoCapacity: all of it is held.
        """
        if by > 0 and self._held[caller] + by > self._most_each:
            raise TooManyRequests(
                f"Requests of this caller that are under way have {self._held[caller]:,} bytes; with this one they "
                f"would have more than {self._most_each:,}.",
                remediation="Wait until some are answered, or send shorter ones.",
                details={"retry_after": 1},
            )
        if by > 0 and self.total + by > self._most:
            raise NoCapacity(
                f"The server holds {self.total:,} bytes of requests; with this one it would be more than "
                f"{self._most:,}.",
                remediation="Try again in a moment, or send a shorter one.",
            )
        self.total += by
        self._held[caller] += by
        if not self._held[caller]:
            del self._held[caller]


class Held:
    """Bytes that one request or socket holds of the budget."""

    def __init__(self, budget: IncomingBudget, caller: str) -> None:
        self._budget = budget
        self._caller = caller
        self._size = 0
        self._holders = 1

    def resize(self, size: int) -> None:
        """Hold so many bytes from now on; raises as of `IncomingBudget.change`."""
        size = 0 if size <= SMALL else size
        if size != self._size:
            self._budget.change(self._caller, size - self._size)
            self._size = size

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Hold them while in the context, also when the request has ended."""
        self._holders += 1
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        """One who needs it less; the last one gives it back."""
        self._holders -= 1
        if not self._holders:
            self.resize(0)


class UnreadAnswers:
    """Answers that their clients have not read yet.

    Args:
        most: bytes of all of them. Beyond it, an answer is cut short: the oldest one of the caller that has most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._answers: dict[Unread, None] = {}
        """Oldest first."""
        self.total = 0

    def add(self, caller: str, cut: Callable[[], object]) -> Unread:
        """One that begins.

        Args:
            caller: who reads it.
            cut: ends it.
        """
        answer = Unread(self, caller, cut)
        self._answers[answer] = None
        return answer

    def changed(self, by: int) -> None:
        """There are more bytes of it, or fewer."""
        self.total += by
        while by > 0 and self.total > self._most:
            sizes: Counter[str] = Counter()
            for one in self._answers:
                sizes[one.caller] += one.size
            worst = max(sizes, key=sizes.__getitem__)
            next(one for one in self._answers if one.caller == worst and one.size).end(cut=True)

    def ended(self, answer: Unread) -> None:
        """It is read, or cut short."""
        self._answers.pop(answer, None)


class Unread:
    """One answer."""

    def __init__(self, answers: UnreadAnswers, caller: str, cut: Callable[[], object]) -> None:
        self._answers = answers
        self._end = cut
        self._ended = False
        self.cut = False
        self.caller = caller
        self.size = 0

    def grow(self, by: int) -> None:
        """More bytes wait, or (below 0) fewer."""
        if not self._ended:
            self.size += by
            self._answers.changed(by)

    def end(self, *, cut: bool = False) -> None:
        """It is read, or (`cut`) it will not be."""
        if self._ended:
            return
        self._ended = True
        self._answers.ended(self)
        self._answers.changed(-self.size)
        self.size = 0
        if cut:
            self.cut = True
            self._end()
