"""Tokens: who may call the server, for which agents, and for what. Only their hashes are kept.

The file is JSON, readable by its owner only, written whole. The server looks at it before each request, so that a token
that is made or revoked counts at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, ConfigDict, Field, ValidationError

from emberbox._files import write_whole
from emberbox._text import check_agent
from emberbox.config import Settings
from emberbox.errors import ConfigError, ValidationFailed
from emberbox.models import Model
from emberbox.models.configuration import LimitName

Scope = Literal["metrics", "read", "execute", "approve", "admin"]
SCOPES: tuple[Scope, ...] = ("metrics", "read", "execute", "approve", "admin")
_FORM = re.compile(r"ebx_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_LARGEST = 16 << 20
_DUMMY = hashlib.sha256(b"").hexdigest()


class TokenRecord(Model):
    """A token, as it is kept. The hash is SHA-256: the secret has 256 random bits, so that a slow hash adds nothing."""

    model_config = ConfigDict(hide_input_in_errors=True)

    id: str
    name: str
    hash: str = Field(repr=False, pattern="^[0-9a-f]{64}$")
    scopes: list[Scope]
    agents: list[str] = Field(description="ids of the agents that it may act for; `*`: any")
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    revoked_at: AwareDatetime | None = None
    requests_per_second: float | None = Field(default=None, gt=0)
    max_concurrent_executions: int | None = Field(default=None, ge=1)
    limits: dict[LimitName, float] = Field(
        default_factory=dict, description="the most that its machines may have, beside the settings' own bounds"
    )

    @property
    def state(self) -> Literal["active", "expired", "revoked"]:
        """Whether it is let in now."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= datetime.now(UTC) else "active"


class _File(Model):
    model_config = ConfigDict(hide_input_in_errors=True)

    version: Literal[1] = 1
    tokens: list[TokenRecord] = Field(default_factory=list)


def token_file(settings: Settings) -> Path:
    """Where the tokens of these settings are."""
    return settings.server.token_file or settings.state_dir / "tokens.json"


class TokenStore:
    """The tokens of one file.

    Args:
        path: the file; it need not be there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, ...] | None = None
        self._bad: tuple[int, ...] | None = None
        """A state of the file that could not be read."""
        self._records: dict[str, TokenRecord] = {}
        self._ever = False

    # --- read -----------------------------------------------------------------------------------------------------

    def records(self) -> list[TokenRecord]:
        """All tokens, revoked and expired ones too, oldest first.

        Raises:
            ConfigError: the file cannot be read, is none of ours, or others may read it.
        """
        self._refresh()
        return list(self._records.values())

    @property
    def enforced(self) -> bool:
        """Whether there is any token, so that nobody is let in without one. A file that was there and is gone lets
        nobody in."""
        self._refresh()
        return bool(self._records) or self._ever

    def check(self, token: str) -> TokenRecord | None:
        """The token's record; None if it is wrong, expired or revoked."""
        self._refresh()
        form = _FORM.fullmatch(token)
        record = self._records.get(form[1]) if form else None
        wanted = record.hash if record else _DUMMY
        same = hmac.compare_digest(wanted, hashlib.sha256(token.encode()).hexdigest())
        return record if record is not None and same and record.state == "active" else None

    def current(self, token_id: str) -> TokenRecord | None:
        """The record of a token that counts now; None if it does not."""
        self._refresh()
        record = self._records.get(token_id)
        return record if record is not None and record.state == "active" else None

    def _refresh(self) -> None:
        try:
            now = self.path.stat()
        except FileNotFoundError:
            self._records, self._seen = {}, None
            return
        except OSError as exc:
            raise ConfigError(f"Cannot read the tokens in {self.path}: {exc.strerror}.") from exc
        seen = (now.st_ino, now.st_mtime_ns, now.st_ctime_ns, now.st_size)  # a chmod counts
        if seen == self._bad:
            raise ConfigError(f"{self.path} is no file of tokens that can be read.", remediation="Restore it.")
        if seen != self._seen:
            self._bad = seen
            if not stat.S_ISREG(now.st_mode):
                raise ConfigError(f"{self.path} is no file.", remediation="Set server.token_file.")
            if now.st_uid != os.geteuid():
                raise ConfigError(
                    f"The tokens in {self.path} are another user's.", remediation=f"chown {os.geteuid()} {self.path}"
                )
            if now.st_mode & 0o077:
                raise ConfigError(
                    f"Others may read or write the tokens in {self.path}.", remediation=f"chmod 600 {self.path}"
                )
            if now.st_size > _LARGEST:
                raise ConfigError(f"{self.path} has {now.st_size:,} bytes; that is no file of tokens.")
            self._records = {record.id: record for record in self._load().tokens}
            self._bad = None
            self._seen, self._ever = seen, self._ever or bool(self._records)

    def _load(self) -> _File:
        try:
            return _File.model_validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return _File()
        except (OSError, ValidationError) as exc:
            raise ConfigError(
                f"{self.path} is no file of tokens that can be read: {exc}.",
                remediation="Restore it, or move it away and make new tokens with `emberbox token create`.",
            ) from exc

    # --- write ----------------------------------------------------------------------------------------------------

    def create(
        self,
        name: str,
        scopes: list[Scope],
        agents: list[str],
        *,
        expires_in: timedelta | None = None,
        requests_per_second: float | None = None,
        max_concurrent_executions: int | None = None,
        limits: Mapping[LimitName, float] | None = None,
    ) -> tuple[str, TokenRecord]:
        """Make a token; the token itself is returned here and never again.

        Raises:
            ValidationFailed: no name, no scope or no agent, or the name of an agent is reserved.
            ConfigError: the file cannot be written.
        """
        if not name or not scopes or not agents or not all(agents):
            raise ValidationFailed(
                "A token needs a name, at least one scope and at least one agent.",
                remediation="emberbox token create NAME --scope execute --agent AGENT",
            )
        for agent in agents:
            check_agent(agent)
        token_id = secrets.token_hex(6)
        token = f"ebx_{token_id}_{secrets.token_urlsafe(32)}"
        now = datetime.now(UTC)
        record = TokenRecord(
            id=token_id,
            name=name,
            hash=hashlib.sha256(token.encode()).hexdigest(),
            scopes=sorted(set(scopes), key=SCOPES.index),
            agents=sorted(set(agents)),
            created_at=now,
            expires_at=None if expires_in is None else now + expires_in,
            requests_per_second=requests_per_second,
            max_concurrent_executions=max_concurrent_executions,
            limits=dict(limits or {}),
        )
        with self._changing() as file:
            file.tokens.append(record)
        return token, record

    def revoke(self, token_id: str) -> TokenRecord:
        """Let a token in no more; its record stays. `token_id`: its id or its name.

        Raises:
            ValidationFailed: there is no such token, or several of that name.
        """
        with self._changing() as file:
            found = [one for one in file.tokens if one.id == token_id]
            found = found or [one for one in file.tokens if one.name == token_id and one.revoked_at is None]
            if len(found) != 1:
                raise ValidationFailed(
                    f"{'Several tokens are' if found else 'No token is'} called {token_id!r:.80}.",
                    remediation="`emberbox token list` shows ids; name one of these.",
                )
            found[0].revoked_at = found[0].revoked_at or datetime.now(UTC)
            return found[0]

    @contextlib.contextmanager
    def _changing(self) -> Iterator[_File]:
        """The contents, written back at the end; one process at a time."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise ConfigError(f"Cannot write tokens to {self.path}: {exc.strerror}.") from exc
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            file = self._load()
            yield file
            self._save(file)
        finally:
            os.close(lock)

    def _save(self, file: _File) -> None:
        try:
            write_whole(self.path, file.model_dump_json(indent=2) + "\n", durable=True)
        except OSError as exc:
            raise ConfigError(f"Cannot write tokens to {self.path}: {exc.strerror}.") from exc
