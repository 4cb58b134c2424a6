"""Entry point of the `emberbox` program: where a part is not installed, it says which."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the program."""
    try:
        from emberbox.cli.app import main as run

        run()
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] == "emberbox":
            raise
        sys.stderr.write(
            f"emberbox: this needs the package of {exc.name}, which is not installed.\n"
            "Install all: pip install 'emberbox[all]' (without a server of your own: 'emberbox[engine]').\n"
        )
        sys.exit(5)
