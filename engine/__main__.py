"""`python -m engine`, and the console script `startmigration`."""

from __future__ import annotations

import gc
import os
import signal
import sys


def _open_standard_descriptors() -> None:
    """Where one is closed, the next socket would get its number, and libuv ends a process that
    closes such a one."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # (Also for processes that are started.)
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


def main() -> int:
    """Run the command line on this process's arguments. Returns the exit code."""
    _open_standard_descriptors()
    # Modules are never garbage. Looking for some again and again while they are imported, and once
    # more in all of them at the very end, took a third of the CPU of a small migration.
    gc.set_threshold(50_000, 50, 100)
    try:
        from engine.cli import whole_writes

        whole_writes.begin()
        from engine.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        code = 130
    gc.freeze()
    # It is over: another Ctrl-C while the interpreter shuts down must not change the exit code.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return code


if __name__ == "__main__":
    sys.exit(main())
