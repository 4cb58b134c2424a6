"""Progress of long work on stderr: a bar on a terminal, one line per step elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console


@contextlib.contextmanager
def build_progress(title: str, console: Console) -> Iterator[Callable[[str, float | None], None]]:
    """A function that takes steps (message, part of the whole or None) and shows them. Nothing is shown unless it is
    called."""
    if not console.is_terminal:
        last = ""

        def say(message: str, part: float | None) -> None:
            nonlocal last
            if message != last:
                last = message
                share = "" if part is None else f" ({part:.0%})"
                console.print(f"{title}: {message}{share}", highlight=False, markup=False)

        yield say
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    with Progress(
        SpinnerColumn(),
        TextColumn("[bold]{task.fields[title]}[/]"),
        BarColumn(bar_width=28),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    ) as bar:
        task = None

        def show(message: str, part: float | None) -> None:
            nonlocal task
            if task is None:
                task = bar.add_task(message, total=1.0, title=title)
            bar.update(task, description=message, completed=part)

        yield show
