"""Run a program for as long as standard input stays open; when that ends, kill the program.

Run as a script with nothing but the standard library: ``python -I -S _supervise.py PROGRAM ARGUMENT...``.
The owner holds the other end of the pipe, so that its death, however sudden, ends the program. PR_SET_PDEATHSIG alone
would not do: the kernel sends it when the *thread* that forked ends, not the process. Here the only thread forks.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys

PR_SET_PDEATHSIG = 1
POLL_S = 0.5


def _die_with_supervisor() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    """Return the program's exit status, or 0 when the owner ended first."""
    inherited = [int(number) for number in sys.argv[1].split(",") if number]
    # A single-threaded process, so that running code between fork and exec is safe.
    program = subprocess.Popen(  # noqa: S603
        sys.argv[2:],
        stdin=subprocess.DEVNULL,
        pass_fds=inherited,
        preexec_fn=_die_with_supervisor,  # noqa: PLW1509
    )
    for number in inherited:
        os.close(number)
    while program.poll() is None:
        readable, _, _ = select.select([0], [], [], POLL_S)
        if readable and not os.read(0, 4096):
            program.kill()
            program.wait()
            return 0
    return program.returncode


if __name__ == "__main__":
    sys.exit(main())
