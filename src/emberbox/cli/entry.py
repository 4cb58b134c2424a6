"""Entry point of the `emberbox` program: it starts and ends fast, and where a part is not installed, it says which."""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the program, and leave the process with its status."""
    # `run_async` switches it on again: most of what the imports make stays until the end, and there is much of it
    gc.disable()
    try:
        status = _run()
    except KeyboardInterrupt:
        status = 130
    atexit._run_exitfuncs()  # noqa: SLF001 (what `os._exit` leaves out)
    os._exit(_flushed(status))  # taking modules and threads apart one by one costs a tenth of a second


def _flushed(status: int) -> int:
    """The status, with all output written; another one where that cannot be."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (BrokenPipeError, ValueError):
            continue  # nobody reads it any more, or it was closed
        except OSError as exc:
            status = status or _unwritten(exc)
    return status


def _unwritten(error: OSError) -> int:
    """Say why the output is not where it should be; the status of that."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"emberbox: cannot write the output: {error.strerror}. Is there space where it goes?\n")
    return 2


def _run() -> int:
    try:
        from emberbox.cli.app import main as run

        run()
    except SystemExit as exc:
        if exc.code is None or isinstance(exc.code, int):
            return exc.code or 0
        sys.stderr.write(f"{exc.code}\n")
        return 1
    except OSError as exc:
        if exc.errno != errno.ENOSPC:
            raise
        return _unwritten(exc)
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] == "emberbox":
            raise
        sys.stderr.write(
            f"emberbox: this needs the package of {exc.name}, which is not installed.\n"
            "Install all: pip install 'emberbox[all]' (without a server of your own: 'emberbox[engine]').\n"
        )
        return 5
    return 0


if __name__ == "__main__":
    main()
