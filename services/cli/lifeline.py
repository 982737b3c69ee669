"""`python lifeline.py PARENT PROGRAM ARGUMENT...`: become a program that dies with its parent.

The tie has to be made in the child, and by a program of its own: a Python function that runs between fork and exec
(`preexec_fn`) can crash or hang wherever the parent has other threads, as gRPC does. The tie outlives exec.

Source: prctl(2), PR_SET_PDEATHSIG.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def tied(command: tuple[str, ...]) -> tuple[str, ...]:
    """The command that becomes `command` and ends with this process, be it by SIGKILL."""
    # Isolated and without site: started by its path in milliseconds, wherever that is done.
    return (sys.executable, "-I", "-S", __file__, str(os.getpid()), *command)


def main() -> None:
    """Have the kernel kill this process when its parent ends, which may have happened already; then be the program."""
    parent, *command = sys.argv[1:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):
        sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
