"""`python3 -ESs -m guest`: takes the channel from descriptors 0 and 1 and serves it."""

from __future__ import annotations

import os

HIGH_FD = 200


def main() -> None:
    """Run the agent until the host goes away."""
    import fcntl

    # Out of the way before anything else, so that nothing can read from or print to the channel by accident.
    fd_in = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, HIGH_FD)
    fd_out = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, HIGH_FD)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)

    from .agent import Agent

    Agent(fd_in, fd_out).run()
    os._exit(0)


if __name__ == "__main__":
    main()
