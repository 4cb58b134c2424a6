"""Who calls, and what of it they may: scopes, agents, and how much at once."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import structlog

from emberbox._text import check_agent
from emberbox.errors import ConfigError, Forbidden, TooManyRequests, Unauthorized
from emberbox.models.base import RESERVED
from emberbox.models.configuration import LimitName
from emberbox.models.server import ServerConfig
from emberbox.sandbox.options import LOCAL_AGENT
from emberbox.server.tokens import SCOPES, Scope, TokenRecord, TokenStore

_ANY = "*"
_CALLERS = 10_000
"""Whose rates are remembered; the one that was quiet longest is forgotten."""


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller of a request. `agents` is None for one that may act for all."""

    id: str
    name: str
    scopes: frozenset[Scope]
    agents: frozenset[str] | None
    requests_per_second: float
    max_executions: int
    record: TokenRecord | None = None
    """Of its token."""

    @property
    def limits(self) -> Mapping[LimitName, float]:
        """The most that a machine may have which the caller makes; without an entry the settings say."""
        return {} if self.record is None else self.record.limits

    def require(self, scope: Scope) -> None:
        """Raises Forbidden where the token has not this scope."""
        if scope not in self.scopes and "admin" not in self.scopes:
            raise Forbidden(f"Token {self.name!r} has not the scope {scope}.")

    def require_read(self) -> None:
        """Raises Forbidden where the caller may not look at anything; who may execute may."""
        if "execute" not in self.scopes:
            self.require("read")

    def require_all_agents(self) -> None:
        """Raises Forbidden for a token that is bound to agents."""
        if self.agents is not None:
            raise Forbidden(
                f"Token {self.name!r} is bound to agents; this is about all of them.",
                remediation="Use a token that was created with --agent '*'.",
            )

    def sees(self, agent_id: str | None) -> bool:
        """Whether what belongs to this agent is there for the caller. What is the server's own is there for nobody."""
        if agent_id is None or agent_id.startswith(RESERVED):
            return False
        return self.agents is None or agent_id in self.agents

    def agent(self, wanted: str | None) -> str:
        """For which agent a request is: the one that it names, or the token's only one.

        Raises:
            Forbidden: the token is not for that agent, or it is for several and none is named.
            ValidationFailed: the name is reserved.
        """
        if wanted is None:
            if self.agents is None:
                return LOCAL_AGENT
            if len(self.agents) == 1:
                return next(iter(self.agents))
            raise Forbidden(
                f"Token {self.name!r} is for several agents, and the request names none.", remediation="Set agent_id."
            )
        check_agent(wanted)
        if not self.sees(wanted):
            raise Forbidden(
                f"Token {self.name!r} is not for agent {wanted!r:.80}.",
                remediation="Leave agent_id out, or use a token of that agent.",
            )
        return wanted


class Authenticator:
    """Lets callers in.

    Args:
        tokens: the tokens; where there is none at all, everybody who can connect is let in.
        config: the limits.
    """

    def __init__(self, tokens: TokenStore, config: ServerConfig) -> None:
        self._tokens = tokens
        self._config = config
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        with contextlib.suppress(ConfigError):
            _ = tokens.enforced  # known from now on: a file that goes before anybody comes opens no door

    def principal(self, authorization: str | None, address: str) -> Principal:
        """Who a request with this header, from this address, is from.

        Raises:
            Unauthorized: it has no token that counts.
            TooManyRequests: too many came from there lately.
        """
        try:
            return self._principal(authorization, address)
        except ConfigError as exc:
            log: structlog.stdlib.BoundLogger = structlog.get_logger("emberbox")
            log.error("tokens cannot be read", reason=exc.message)  # noqa: TRY400 (the message says it all)
            raise Unauthorized(
                "The server cannot read its tokens, and lets nobody in.", remediation="Its log says why."
            ) from exc

    def counts(self, principal: Principal) -> bool:
        """Whether a caller that was let in would be let in now, with the same scopes and agents."""
        try:
            if principal.record is None:
                return not self._tokens.enforced
            return self._tokens.current(principal.id) == principal.record
        except ConfigError:
            return False

    def take(self, principal: Principal) -> None:
        """One more message of a socket; raises TooManyRequests where that is too much."""
        self._pass(principal.id, principal.requests_per_second)

    def _principal(self, authorization: str | None, address: str) -> Principal:
        if not self._tokens.enforced:
            config = self._config
            who = Principal(
                f"address:{address}", "anybody", frozenset(SCOPES), None,
                config.requests_per_second, config.max_concurrent_executions,
            )  # fmt: skip
            self._pass(who.id, who.requests_per_second)
            return who
        scheme, _, token = (authorization or "").partition(" ")
        record = self._tokens.check(token.strip()) if scheme.lower() == "bearer" else None
        if record is None:
            self._pass(f"address:{address}", self._config.requests_per_second)
            raise Unauthorized(
                "The token is wrong, expired or revoked." if token else "A token is needed: Authorization: Bearer …"
            )
        who = Principal(
            record.id,
            record.name,
            frozenset(record.scopes),
            None if _ANY in record.agents else frozenset(record.agents),
            record.requests_per_second or self._config.requests_per_second,
            record.max_concurrent_executions or self._config.max_concurrent_executions,
            record,
        )
        self._pass(who.id, who.requests_per_second)
        return who

    def _pass(self, caller: str, rate: float) -> None:
        bucket = self._buckets.get(caller)
        if bucket is None or bucket.rate != rate:
            bucket = self._buckets[caller] = _Bucket(rate)
        self._buckets.move_to_end(caller)
        if len(self._buckets) > _CALLERS:
            self._buckets.popitem(last=False)
        wait = bucket.take()
        if wait > 0:
            raise TooManyRequests(
                f"More than {rate:g} requests a second.", details={"retry_after": max(1, math.ceil(wait))}
            )


@dataclass(slots=True)
class _Bucket:
    """Requests that may come: `rate` a second, and as many at once as come in two seconds."""

    rate: float
    _left: float = -1.0
    _at: float = field(default_factory=time.monotonic)

    def take(self) -> float:
        """0 if one may pass now; else the seconds until then."""
        now, most = time.monotonic(), max(1.0, 2 * self.rate)
        self._left = most if self._left < 0 else min(most, self._left + (now - self._at) * self.rate)
        self._at = now
        if self._left >= 1:
            self._left -= 1
            return 0.0
        return (1 - self._left) / self.rate


class ConcurrencyLimiter:
    """How much of one kind each caller has under way.

    Args:
        what: in the message for who wants more.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._taken: dict[str, int] = {}
        self._free = asyncio.Event()
        self._free.set()

    @property
    def total(self) -> int:
        return sum(self._taken.values())

    @contextlib.contextmanager
    def one(self, caller: str, most: int) -> Iterator[None]:
        """Take a place while in the context; raises TooManyRequests where the caller has its `most`."""
        self.check(caller, most)
        self._taken[caller] = self._taken.get(caller, 0) + 1
        self._free.clear()
        try:
            yield
        finally:
            self._taken[caller] -= 1
            if not self._taken[caller]:
                del self._taken[caller]
            if not self._taken:
                self._free.set()

    def check(self, caller: str, most: int) -> None:
        """Raises TooManyRequests where the caller has its `most`."""
        taken = self._taken.get(caller, 0)
        if taken >= most:
            raise TooManyRequests(f"{taken} {self._what} are under way: the limit.", details={"retry_after": 1})

    async def empty(self) -> None:
        """Wait until nothing is under way."""
        await self._free.wait()
