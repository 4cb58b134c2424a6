"""The `emberbox` program: commands and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emberbox import __version__
from emberbox.cli import server_app
from emberbox.cli.server_app import Server, Token
from emberbox.cli.target import Target

app = typer.Typer(
    name="emberbox",
    help="Run code that a language model wrote in an isolated machine.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Settings: those in force, a file checked, an example.", no_args_is_help=True)
app.add_typer(config_app, name="config")
image_app = typer.Typer(help="What sandboxes start from: list, build, show, remove.", no_args_is_help=True)
app.add_typer(image_app, name="image")
history_app = typer.Typer(help="What was executed: list, show, verify.", no_args_is_help=True)
app.add_typer(history_app, name="history")
policy_app = typer.Typer(help="Rules that code must keep: list them, check a file.", no_args_is_help=True)
app.add_typer(policy_app, name="policy")
snapshot_app = typer.Typer(help="Kept snapshots: list, show, delete, export, import.", no_args_is_help=True)
app.add_typer(snapshot_app, name="snapshot")
_EXITS = (
    "Exit codes: 0 all succeeded, 1 a block failed, 2 bad usage or input, 3 blocked by policy, 4 time-out, "
    "5 no back end, 6 nothing was run, since no code is sure enough to be meant."
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text for people.")]
Template = Annotated[str | None, typer.Option("--template", "-t", help="Template name, or path of its .toml file.")]
Hooks = Annotated[
    list[str] | None, typer.Option("--hook", metavar="NAME", help="A hook for this run, such as output-sanitizer.")
]
Yes = Annotated[
    bool,
    typer.Option(
        "--yes", "-y", help="Every question is answered with yes: what policy and hooks ask, and ./ember's set-up."
    ),
]
Timeout = Annotated[float | None, typer.Option("--timeout", help="Seconds each execution may take.", min=0.001)]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"emberbox {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    config: Annotated[Path | None, typer.Option("--config", help="Settings file (TOML).", exists=True)] = None,
) -> None:
    del version
    if config is not None:
        import os

        os.environ["EMBERBOX_CONFIG"] = str(config)


@app.command(epilog=_EXITS)
def run(
    file: Annotated[str, typer.Argument(help="A file with a model's answer, or - for standard input.")],
    as_json: Json = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only find the blocks; run nothing.")] = False,
    threshold: Annotated[
        float | None, typer.Option(help="Run blocks of at least this confidence.", min=0, max=1)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Run all blocks, whatever their confidence.")] = False,
    timeout: Timeout = None,
    template: Template = None,
    save: Annotated[Path | None, typer.Option("--save", help="Folder to write figures and tables to.")] = None,
    hook: Hooks = None,
    yes: Yes = False,
) -> None:
    """Find the code in a model's answer and run it in a fresh sandbox."""
    from emberbox.cli.run import RunOptions, run_answer

    if everything and threshold is not None:
        raise typer.BadParameter("give either --all or --threshold")
    run_answer(
        RunOptions(
            file=file,
            as_json=as_json,
            dry_run=dry_run,
            threshold=0.0 if everything else threshold,
            timeout=timeout,
            template=template,
            save=save,
            hooks=tuple(hook or ()),
            yes=yes,
        )
    )


@app.command("exec", epilog=_EXITS)
def exec_(
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="A source file, or - for standard input; not with --code.")
    ] = None,
    args: Annotated[
        list[str] | None, typer.Argument(metavar="ARGS", help="What the program gets; after -- also options.")
    ] = None,
    language: Annotated[str | None, typer.Option("--language", "-l", help="python, javascript, bash or rust.")] = None,
    code: Annotated[str | None, typer.Option("--code", "-c", help="The code itself.")] = None,
    as_json: Json = False,
    timeout: Timeout = None,
    template: Template = None,
    hook: Hooks = None,
    yes: Yes = False,
) -> None:
    """Run one piece of code in a fresh sandbox; its output and exit status are the answer.

    The program reads what is piped in, or the file that standard input is; a terminal it does not get.
    """
    from emberbox.cli.execute import ExecOptions, execute_code

    words = [*([] if file is None else [file]), *(args or ())]
    source = words.pop(0) if words and code is None else None
    execute_code(
        ExecOptions(
            file=source,
            args=tuple(words),
            language=language,
            code=code,
            as_json=as_json,
            timeout=timeout,
            template=template,
            hooks=tuple(hook or ()),
            yes=yes,
        )
    )


@app.command("extract")
def extract_(
    file: Annotated[str, typer.Argument(help="A file with a model's answer, or - for standard input.")],
    as_json: Json = False,
    threshold: Annotated[
        float | None, typer.Option(help="Confidence from which a block would run.", min=0, max=1)
    ] = None,
) -> None:
    """Show the blocks of a model's answer, how sure each is meant to be run, and why."""
    from emberbox.cli.extract import extract

    extract(file, as_json=as_json, threshold=threshold)


@app.command("agent", epilog=_EXITS)
def agent_(
    role: Annotated[str, typer.Option("--role", "-r", help="A role file (JSON).")],
    text: Annotated[
        str | None, typer.Argument(help="A question; - for standard input; left out: a conversation.")
    ] = None,
    execute: Annotated[bool, typer.Option("--execute", "-x", help="The text is an answer: run its code.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Every question is answered with yes.")] = False,
    as_json: Json = False,
) -> None:
    """Ask an agent that writes code and runs it, or talk with it."""
    from emberbox.cli.agent import run_agent

    run_agent(role=role, text=text, as_json=as_json, execute=execute, yes=yes)


Agent = Annotated[str | None, typer.Option("--agent", help="As they are for this agent.")]
Role = Annotated[str | None, typer.Option("--role", help="As they are for this role.")]


@policy_app.command("list")
def policy_list(
    language: Annotated[str | None, typer.Option("--language", "-l", help="Only of this language.")] = None,
    agent: Agent = None,
    role: Role = None,
    as_json: Json = False,
) -> None:
    """All rules, with what they do: block, ask, or nothing."""
    from emberbox.cli.policy import list_rules

    list_rules(language=language, agent=agent, role=role, as_json=as_json)


@policy_app.command("check", epilog="Exit codes: 0 nothing found, 2 it does not parse, 3 a rule objects.")
def policy_check(
    file: Annotated[str, typer.Argument(help="A source file, or - for standard input.")],
    language: Annotated[str | None, typer.Option("--language", "-l", help="python, javascript, bash or rust.")] = None,
    agent: Agent = None,
    role: Role = None,
    as_json: Json = False,
) -> None:
    """What the syntax check and the rules say of a source file; it is not run."""
    from emberbox.cli.policy import check_file

    check_file(file, language=language, agent=agent, role=role, as_json=as_json)


@app.command()
def setup(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before installing.")] = False,
    template: Template = None,
    backend: Annotated[str | None, typer.Option("--backend", help="Of this one: gvisor, firecracker, qemu.")] = None,
    archive: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Firecracker's release, for hosts without a network.")
    ] = None,
    runsc: Annotated[
        str | None,
        typer.Option(
            "--runsc",
            metavar="newest|FILE|default",
            help="Use this gVisor from now on: the newest release (or one built with Go), a program, or what is found.",
        ),
    ] = None,
) -> None:
    """Install what is missing, build the template's image, and start a sandbox from it as proof."""
    from emberbox.cli.setup import run_setup

    run_setup(yes=yes, template=template, backend=backend, archive=archive, runsc=runsc)


@app.command()
def doctor(as_json: Json = False, template: Template = None) -> None:
    """Say what was found, what was chosen and what to do; exit code 0 only if code was really run."""
    from emberbox.cli.doctor import run_doctor

    run_doctor(as_json=as_json, template=template)


@app.command(epilog="Exit codes: 0 measured, whether or not the aims are met; 2 bad usage; 5 no back end.")
def bench(
    backend: Annotated[str | None, typer.Option("--backend", help="Of this one: gvisor, firecracker, qemu.")] = None,
    as_json: Json = False,
    quick: Annotated[bool, typer.Option("--quick", help="Few samples, under a minute in all.")] = False,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="ROW", help="Only these rows: fresh,live (may be repeated).")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the JSON document to this file as well.")
    ] = None,
    template: Template = None,
) -> None:
    """Measure how fast it is here, beside plain Python, bubblewrap, runsc and Jupyter."""
    from emberbox.cli.bench import BenchOptions, run_bench

    run_bench(
        BenchOptions(
            backend=backend,
            as_json=as_json,
            quick=quick,
            only=tuple(only or ()),
            output=output,
            template=template,
        )
    )


@config_app.command("example")
def config_example() -> None:
    """Print the settings file with every setting explained."""
    from emberbox.cli.config import print_example

    print_example()


@config_app.command("show")
def config_show(as_json: Json = False) -> None:
    """The settings in force, and where each comes from."""
    from emberbox.cli.config import show

    show(as_json=as_json)


@config_app.command("check", epilog="Exit codes: 0 nothing to object to, 2 something is wrong.")
def config_check(file: Annotated[Path, typer.Argument(help="A settings file.")], as_json: Json = False) -> None:
    """Say everything that is wrong with a settings file."""
    from emberbox.cli.config import check

    check(file, as_json=as_json)


@image_app.command("list")
def image_list(as_json: Json = False) -> None:
    """Templates and their images."""
    from emberbox.cli.images import list_images

    list_images(as_json=as_json)


@image_app.command("build")
def image_build(
    name: Annotated[str, typer.Argument(help="Template name, or path of its .toml file.")] = "default",
    force: Annotated[bool, typer.Option("--force", help="Build it anew even if it is in the cache.")] = False,
) -> None:
    """Build the image of a template."""
    from emberbox.cli.images import build_image

    build_image(name, force=force)


@image_app.command("build-kernel")
def image_build_kernel(
    emulated: Annotated[
        bool, typer.Option("--emulated", help="The variant for hosts whose KVM is emulated; for tests only.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Copy the kernel (vmlinux) there, too.")] = None,
    source: Annotated[Path | None, typer.Option("--source", help="Archive of the source, instead of Debian's.")] = None,
) -> None:
    """Build the minimal kernel of microVMs from Debian's source of Linux (some minutes)."""
    from emberbox.cli.images import build_guest_kernel

    build_guest_kernel(emulated=emulated, output=output, source=source)


@image_app.command("fetch-kernel")
def image_fetch_kernel(
    packages: Annotated[
        list[Path] | None,
        typer.Argument(help="Package files (linux-image-…-cloud-amd64 and busybox-static), instead of apt."),
    ] = None,
) -> None:
    """Make a kernel of microVMs from Debian's cloud kernel, fetched by apt."""
    from emberbox.cli.images import fetch_guest_kernel

    fetch_guest_kernel(packages or [])


@image_app.command("show")
def image_show(name: Annotated[str, typer.Argument(help="Template name.")] = "default", as_json: Json = False) -> None:
    """What an image holds."""
    from emberbox.cli.images import show_image

    show_image(name, as_json=as_json)


@image_app.command("rm")
def image_rm(
    name: Annotated[str, typer.Argument(help="Template name.")],
    stale: Annotated[bool, typer.Option("--stale", help="Only images of earlier versions of the template.")] = False,
) -> None:
    """Remove the images of a template."""
    from emberbox.cli.images import remove_image

    remove_image(name, stale_only=stale)


@history_app.command("list")
def history_list(
    limit: Annotated[int, typer.Option(help="At most so many.", min=1, max=10_000)] = 20,
    failures: Annotated[bool, typer.Option("--failures", help="Only what failed or was refused.")] = False,
    sandbox: Annotated[str | None, typer.Option(help="Only of this sandbox.")] = None,
    agent: Annotated[str | None, typer.Option(help="Only of this agent.")] = None,
    since: Annotated[str | None, typer.Option(help="Only later ones: 30m, 2h, 7d ago, or a date and time.")] = None,
    until: Annotated[str | None, typer.Option(help="Only earlier ones.")] = None,
    server: Server = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """What was executed, newest first."""
    from emberbox.cli.history import list_entries

    list_entries(
        Target(server, token),
        limit=limit,
        failures=failures,
        sandbox=sandbox,
        agent=agent,
        since=since,
        until=until,
        as_json=as_json,
    )


@history_app.command("show")
def history_show(
    execution_id: Annotated[str, typer.Argument(help="Id of an execution, from `emberbox history list`.")],
    server: Server = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """One execution: code, output and how it ended."""
    from emberbox.cli.history import show_entry

    show_entry(Target(server, token), execution_id, as_json=as_json)


@history_app.command("verify", epilog="Exit codes: 0 intact, 1 broken, 2 it cannot be read.")
def history_verify(
    noted: Annotated[str | None, typer.Option("--head", help="A head noted earlier; it must still be there.")] = None,
    server: Server = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Check that nobody changed the history since it was written."""
    from emberbox.cli.history import verify_chain

    verify_chain(Target(server, token), noted=noted, as_json=as_json)


SnapshotId = Annotated[str, typer.Argument(help="Id of a snapshot, from `emberbox snapshot list`.")]


@snapshot_app.command("list")
def snapshot_list(
    vm: Annotated[str | None, typer.Option("--vm", help="Those of a machine of a server.")] = None,
    server: Server = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Snapshots that outlive their process, oldest first; or all of a machine."""
    if vm is not None:
        from emberbox.cli.machines import list_snapshots as list_of_machine

        list_of_machine(Target(server, token), vm, as_json=as_json)
    from emberbox.cli.snapshot import list_snapshots

    list_snapshots(as_json=as_json)


@snapshot_app.command("show")
def snapshot_show(snapshot_id: SnapshotId, as_json: Json = False) -> None:
    """What a snapshot is of, and whether it can be used here."""
    from emberbox.cli.snapshot import show_snapshot

    show_snapshot(snapshot_id, as_json=as_json)


@snapshot_app.command("delete")
def snapshot_delete(
    snapshot_id: SnapshotId,
    force: Annotated[bool, typer.Option("--force", help="Even if a durable sandbox may go on from it.")] = False,
) -> None:
    """Delete a snapshot."""
    from emberbox.cli.snapshot import delete_snapshot

    delete_snapshot(snapshot_id, force=force)


@snapshot_app.command("export")
def snapshot_export(
    snapshot_id: SnapshotId,
    file: Annotated[Path, typer.Argument(help="A new file; compressed if its name ends in .gz.")],
) -> None:
    """Write a snapshot to one file. It holds the memory of the sandbox: keep it private."""
    from emberbox.cli.snapshot import export

    export(snapshot_id, file)


@snapshot_app.command("import")
def snapshot_import(
    file: Annotated[Path, typer.Argument(help="A file that `emberbox snapshot export` wrote.")],
) -> None:
    """Take a snapshot in from a file, whole or not at all. Only from whom you trust: see SECURITY.md."""
    from emberbox.cli.snapshot import import_

    import_(file)


server_app.register(app, snapshot_app)


def main() -> None:
    """Entry point of the `emberbox` program."""
    app(prog_name="emberbox")
