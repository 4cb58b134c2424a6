"""Records a real run of a command as an SVG picture of the terminal: `python docs/pictures/record.py OUT.svg CMD…`.

The command runs on a pseudo-terminal, so that it shows what a person sees; lines of standard input are typed when it
prompts (`> `). The pictures are made by
`python docs/pictures/record.py docs/pictures/run.svg ./ember run examples/all-languages.md </dev/null`
`python docs/pictures/record.py docs/pictures/shell.svg ./ember shell <docs/pictures/shell.txt`.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

COLUMNS, ROWS = 100, 60
_SVG = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
    <style>
    .{unique_id}-matrix {{
        font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
        font-size: {char_height}px;
        line-height: {line_height}px;
        font-variant-east-asian: full-width;
    }}
    .{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
    {styles}
    </style>
    <defs>
    <clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
    </clipPath>
    {lines}
    </defs>
    {chrome}
    <g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
    {backgrounds}
    <g class="{unique_id}-matrix">
    {matrix}
    </g>
    </g>
</svg>
"""
"""Rich's own picture without its web fonts: a README must not make its reader fetch from a third party."""


def run_on_a_terminal(argv: list[str], typed: list[str]) -> str:
    """What the command writes to a terminal, control sequences included, and what is typed there."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    data = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # EIO: the last writer is gone
            break
        if not piece:
            break
        data += piece
        if typed and re.search(rb"(> |\.\.\. )(\x1b\[[^A-Za-z]*[A-Za-z])*$", data):
            os.write(master, typed.pop(0).encode())
    os.close(master)
    process.wait(timeout=60)
    return data.decode("utf-8", "replace")


def main() -> None:
    out, *argv = sys.argv[1:]
    typed = sys.stdin.readlines()
    shown = re.sub(r"\x1b\[\?(25|2004)[hl]|\r(?!\n)", "", run_on_a_terminal(argv, typed)).replace("\r\n", "\n")
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.assemble(("$ ", "bold green"), (" ".join(argv), "bold")))
    console.print(Text.from_ansi(shown), end="")
    svg = console.export_svg(title="Emberbox", theme=MONOKAI, code_format=_SVG, unique_id="emberbox")
    Path(out).write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
