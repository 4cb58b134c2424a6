"""`emberbox serve` and `emberbox token …`."""

from __future__ import annotations

import json
import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import get_args

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from emberbox.cli.exits import Exit, fail
from emberbox.cli.printing import printable
from emberbox.config import Settings, load_settings
from emberbox.errors import ValidationFailed, VmExecutionError
from emberbox.models import MachineLimits
from emberbox.models.configuration import LimitName
from emberbox.models.server import ServerConfig
from emberbox.server.tokens import SCOPES, Scope, TokenRecord, TokenStore, token_file

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def serve(*, host: str | None, port: int | None, token_file: Path | None) -> None:
    """Serve until it is stopped; leaves the process."""
    from emberbox.server.run import run_server

    console = Console(stderr=True, highlight=False, soft_wrap=True)

    def announce(address: str, tokens: bool) -> None:
        who = "with a token" if tokens else "by anybody on this host; `emberbox token create NAME` changes that"
        console.print(f"[bold green]✓[/] Emberbox serves at [bold]{address}[/] ([bold]{address}/docs[/] shows how)")
        console.print(f"  it can be used {who}")

    try:
        settings = _with(load_settings(), host, port, token_file)
        run_server(settings, announce)
    except VmExecutionError as error:
        fail(error, as_json=False)
    sys.exit(int(Exit.SUCCESS))


def _with(settings: Settings, host: str | None, port: int | None, tokens: Path | None) -> Settings:
    given = {"host": host, "port": port, "token_file": tokens}
    update = {name: value for name, value in given.items() if value is not None}
    server = ServerConfig.model_validate(settings.server.model_dump() | update)
    return settings.model_copy(update={"server": server})


def _store(path: Path | None) -> TokenStore:
    return TokenStore(path.expanduser().absolute() if path else token_file(load_settings()))


def create_token(
    name: str,
    *,
    scopes: list[str],
    agents: list[str],
    expires: str | None,
    rate: float | None,
    concurrency: int | None,
    limits: list[str],
    path: Path | None,
    as_json: bool,
) -> None:
    """Make a token and print it, this once; leaves the process."""
    try:
        wanted = [_scope(one) for one in scopes] or ["read", "execute"]
        token, record = _store(path).create(
            name,
            wanted,
            agents or ["*"],
            expires_in=None if expires is None else _span(expires),
            requests_per_second=rate,
            max_concurrent_executions=concurrency,
            limits=dict(_limit(one) for one in limits),
        )
    except VmExecutionError as error:
        fail(error, as_json=as_json)
    if as_json:
        print(json.dumps({"token": token, **_public(record)}, indent=2))
    else:
        print(token)
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        may = ", ".join(record.scopes)
        console.print(f"[bold green]✓[/] Token {record.id} ({may}; agents {_words(record.agents)}).")
        console.print("  It is shown this once. Callers send it as `Authorization: Bearer …`, or set EMBERBOX_TOKEN.")
    sys.exit(int(Exit.SUCCESS))


def _scope(text: str) -> Scope:
    for scope in SCOPES:
        if text == scope:
            return scope
    raise ValidationFailed(f"There is no scope {text!r:.40}.", remediation=f"One of {', '.join(SCOPES)}.")


def _limit(text: str) -> tuple[LimitName, float]:
    name, _, number = text.partition("=")
    for known in get_args(LimitName):
        if name == known and re.fullmatch(r"\d{1,12}(\.\d{1,6})?", number):
            try:
                MachineLimits.model_validate({known: float(number)})
            except ValidationError as exc:
                raise ValidationFailed(
                    f"{text!r:.60}: {exc.errors()[0]['msg']}.", remediation="Give another number."
                ) from exc
            return known, float(number)
    raise ValidationFailed(
        f"{text!r:.60} is no limit.", remediation=f"Write NAME=NUMBER; NAME is one of {', '.join(get_args(LimitName))}."
    )


def _span(text: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,5})([mhdw])", text)
    if not match:
        raise ValidationFailed(f"{text!r:.40} is no span of time.", remediation="Write 30m, 12h, 90d or 52w.")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def list_tokens(*, path: Path | None, as_json: bool) -> None:
    """All tokens, without the tokens themselves; leaves the process."""
    try:
        records = _store(path).records()
    except VmExecutionError as error:
        fail(error, as_json=as_json)
    if as_json:
        print(json.dumps([_public(record) for record in records], indent=2))
    elif not records:
        Console(highlight=False).print("There are no tokens: on loopback anybody on this host may call the server.")
    else:
        Console(highlight=False).print(_table(records))
    sys.exit(int(Exit.SUCCESS))


def _table(records: list[TokenRecord]) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("id", "name", "state", "scopes", "agents", "made", "expires"):
        table.add_column(name)
    colours = {"active": "green", "expired": "yellow", "revoked": "red"}
    for record in records:
        expires = "never" if record.expires_at is None else f"{record.expires_at.astimezone():%Y-%m-%d %H:%M}"
        table.add_row(
            record.id,
            Text(printable(record.name)),
            Text(record.state, style=colours[record.state]),
            ", ".join(record.scopes),
            Text(printable(_words(record.agents))),
            f"{record.created_at.astimezone():%Y-%m-%d}",
            expires,
        )
    return table


def _words(agents: list[str]) -> str:
    return "any" if "*" in agents else ", ".join(agents)


def revoke_token(token_id: str, *, path: Path | None, as_json: bool) -> None:
    """Let a token in no more; leaves the process."""
    try:
        record = _store(path).revoke(token_id)
    except VmExecutionError as error:
        fail(error, as_json=as_json)
    if as_json:
        print(json.dumps(_public(record), indent=2))
    else:
        Console(highlight=False).print(f"[bold green]✓[/] Token {record.id} ({printable(record.name)}) is revoked.")
    sys.exit(int(Exit.SUCCESS))


def _public(record: TokenRecord) -> dict[str, object]:
    return record.model_dump(mode="json", exclude={"hash"}) | {"state": record.state}
