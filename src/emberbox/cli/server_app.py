"""The commands of and for servers: `serve`, `token`, and what asks a server.

`register` adds them to the program.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from emberbox.cli.target import Target

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text for people.")]
Server = Annotated[
    str | None,
    typer.Option("--server", envvar="EMBERBOX_SERVER", help="Address of the server."),
]
Token = Annotated[
    str | None, typer.Option("--token", envvar="EMBERBOX_TOKEN", help="Better in the variable: arguments can be seen.")
]
Vm = Annotated[str, typer.Argument(metavar="VM", help="Id of a machine, from `emberbox vms list`.")]
Template = Annotated[str | None, typer.Option("--template", "-t", help="Template name.")]

_SERVE = "It stops at SIGTERM or Ctrl-C, when what runs has ended. Exit codes: 0 stopped, 2 bad usage."
_APPROVE = "Without an id: all that wait, one after the other. Exit codes: 0 answered, 2 there is none."

serve_app = typer.Typer()
token_app = typer.Typer(help="Who may call the server: create, list, revoke tokens.", no_args_is_help=True)
vms_app = typer.Typer(help="Machines of a server: list, create, kill.", no_args_is_help=True)
sessions_app = typer.Typer(help="Sessions of a server: list, run, close.", no_args_is_help=True)
asking_app = typer.Typer()


def register(app: typer.Typer, snapshot_app: typer.Typer) -> None:
    """Add all of them."""
    for flat in (serve_app, asking_app):
        app.registered_commands += flat.registered_commands
    app.add_typer(token_app, name="token")
    app.add_typer(vms_app, name="vms")
    app.add_typer(sessions_app, name="sessions")
    snapshot_app.command("create")(snapshot_create)


TokenFile = Annotated[Path | None, typer.Option("--token-file", help="File of tokens, instead of the settings'.")]


@serve_app.command("serve", epilog=_SERVE)
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; 127.0.0.1 by default.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 8080 by default, 0 for any.", min=0, max=65535)] = None,
    token_file: TokenFile = None,
    config: Annotated[Path | None, typer.Option("--config", help="Settings file (TOML).", exists=True)] = None,
) -> None:
    """Serve the HTTP and WebSocket API."""
    from emberbox.cli.serve import serve as run

    if config is not None:
        os.environ["EMBERBOX_CONFIG"] = str(config)
    run(host=host, port=port, token_file=token_file)


@token_app.command("create")
def token_create(
    name: Annotated[str, typer.Argument(help="Whose it is, for you to know.")],
    scope: Annotated[
        list[str] | None, typer.Option("--scope", help="metrics, read, execute, approve, admin (repeat).")
    ] = None,
    agent: Annotated[
        list[str] | None, typer.Option("--agent", help="Only for this agent (repeat); for any if none.")
    ] = None,
    expires: Annotated[str | None, typer.Option(help="After 30m, 12h, 90d, 52w; never if not given.")] = None,
    rate: Annotated[float | None, typer.Option(help="Requests a second.", min=0.01)] = None,
    concurrency: Annotated[int | None, typer.Option(help="Executions at once.", min=1)] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option("--limit", metavar="NAME=NUMBER", help="The most a machine may have, as memory_mb=512 (repeat)."),
    ] = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Make a token. It is printed once; only its hash is kept."""
    from emberbox.cli.serve import create_token

    create_token(
        name,
        scopes=scope or [],
        agents=agent or [],
        expires=expires,
        rate=rate,
        concurrency=concurrency,
        limits=limit or [],
        path=token_file,
        as_json=as_json,
    )


@token_app.command("list")
def token_list(token_file: TokenFile = None, as_json: Json = False) -> None:
    """All tokens, revoked and expired ones too."""
    from emberbox.cli.serve import list_tokens

    list_tokens(path=token_file, as_json=as_json)


@token_app.command("revoke")
def token_revoke(
    token: Annotated[str, typer.Argument(help="Its id, or its name.")],
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Let a token in no more, from now on."""
    from emberbox.cli.serve import revoke_token

    revoke_token(token, path=token_file, as_json=as_json)


# --- machines ---------------------------------------------------------------------------------------------------------


@vms_app.command("list")
def vms_list(server: Server = None, token: Token = None, as_json: Json = False) -> None:
    """All machines that the token may see."""
    from emberbox.cli.machines import list_vms

    list_vms(Target(server, token), as_json=as_json)


@vms_app.command("create")
def vms_create(
    template: Template = None,
    name: Annotated[str | None, typer.Option(help="A name for it.")] = None,
    agent: Annotated[str | None, typer.Option(help="Whose it is.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds after which it ends; never if not given.")] = None,
    snapshot: Annotated[str | None, typer.Option(help="A kept snapshot to go on from.")] = None,
    server: Server = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Make a machine."""
    from emberbox.cli.machines import create_vm

    create_vm(
        Target(server, token),
        template=template,
        name=name,
        agent=agent,
        timeout=timeout,
        snapshot=snapshot,
        as_json=as_json,
    )


@vms_app.command("kill")
def vms_kill(vm: Vm, server: Server = None, token: Token = None, as_json: Json = False) -> None:
    """End a machine, with everything in it."""
    from emberbox.cli.machines import kill_vm

    kill_vm(Target(server, token), vm, as_json=as_json)


@asking_app.command()
def rollback(
    vm: Vm,
    to: Annotated[
        str, typer.Argument(help="A snapshot, an execution (the state before it), or last-success.")
    ] = "last-success",
    path: Annotated[list[str] | None, typer.Option("--path", help="Only this file or folder (repeat).")] = None,
    keep: Annotated[bool, typer.Option("--keep-current", help="Take a snapshot of now before.")] = False,
    server: Server = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Take a machine of a server back: files, memory, processes."""
    from emberbox.cli.machines import rollback as run

    run(Target(server, token), vm, to, paths=path or [], keep_current=keep, as_json=as_json)


@asking_app.command()
def branch(
    vm: Vm,
    point: Annotated[str, typer.Argument(help="A snapshot, an execution, or last-success.")],
    timeout: Annotated[float | None, typer.Option(help="Seconds after which it ends; never if not given.")] = None,
    server: Server = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """A new machine that goes on from a point of another one."""
    from emberbox.cli.machines import branch as run

    run(Target(server, token), vm, point, timeout=timeout, as_json=as_json)


@asking_app.command()
def logs(
    vm: Vm,
    limit: Annotated[int, typer.Option("--limit", "-n", help="At most so many.", min=1, max=10_000)] = 20,
    failures: Annotated[bool, typer.Option("--failures", help="Only what failed or was refused.")] = False,
    server: Server = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """What was executed in a machine, with its output; also when it has ended."""
    from emberbox.cli.machines import logs as run

    run(Target(server, token), vm, limit=limit, failures=failures, as_json=as_json)


@asking_app.command()
def attach(vm: Vm, server: Server = None, token: Token = None, as_json: Json = False) -> None:
    """Follow what is executed in a machine, as it happens."""
    from emberbox.cli.attach import attach as run

    run(Target(server, token), vm, as_json=as_json)


@asking_app.command(epilog=_APPROVE)
def approve(
    approval_id: Annotated[str | None, typer.Argument(metavar="ID", help="Which question.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Approve it.")] = False,
    no: Annotated[bool, typer.Option("--no", help="Refuse it.")] = False,
    reason: Annotated[str, typer.Option(help="Why, for the audit trail.")] = "",
    code: Annotated[Path | None, typer.Option("--code", help="A file with code to run instead.", exists=True)] = None,
    server: Server = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Answer questions of hooks and rules: may this run?"""
    from emberbox.cli.attach import approve as run

    if yes and no:
        raise typer.BadParameter("give either --yes or --no")
    if approval_id is None and (yes or no):
        raise typer.BadParameter("name the question that this answers")
    if code is not None and not yes:
        raise typer.BadParameter("--code goes with --yes")
    edited = None if code is None else code.read_text(encoding="utf-8")
    answer = (yes, reason, edited) if yes or no else None
    run(Target(server, token), approval_id, answer=answer, as_json=as_json)


@asking_app.command()
def shell(
    vm: Annotated[str | None, typer.Argument(metavar="[VM]", help="Of a server; a new one if not given.")] = None,
    language: Annotated[str, typer.Option("--language", "-l", help="Of what is typed first.")] = "python",
    template: Template = None,
    server: Server = None,
    token: Token = None,
) -> None:
    """An interactive prompt on a machine, with undo; on this host, or with --server on that one."""
    from emberbox.cli.shell import open_shell

    open_shell(Target(server, token), vm, language=language, template=template)


# --- snapshots, sessions ----------------------------------------------------------------------------------------------


def snapshot_create(
    vm: Vm,
    name: Annotated[str | None, typer.Option(help="A word for it.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="It stays when the machine has ended.")] = False,
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    server: Server = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Keep a machine of a server as it is now."""
    from emberbox.cli.machines import create_snapshot

    create_snapshot(Target(server, token), vm, name, keep=keep, description=description, as_json=as_json)


@sessions_app.command("list")
def sessions_list(server: Server = None, token: Token = None, as_json: Json = False) -> None:
    """Sessions that the token may see."""
    from emberbox.cli.machines import list_sessions

    list_sessions(Target(server, token), as_json=as_json)


@sessions_app.command("run")
def sessions_run(
    name: Annotated[str, typer.Argument(help="Of the session.")],
    command: Annotated[str, typer.Argument(help="For its shell.")],
    server: Server = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Run a command in a session's shell; its output and exit status are the answer."""
    from emberbox.cli.machines import run_in_session

    run_in_session(Target(server, token), name, command, as_json=as_json)


@sessions_app.command("close")
def sessions_close(
    name: Annotated[str, typer.Argument(help="Of the session.")],
    server: Server = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """End a session with its machine."""
    from emberbox.cli.machines import close_session

    close_session(Target(server, token), name, as_json=as_json)
