"""The command ``aggregator``. Data on stdout, everything else on stderr; 0 fine, 1 failed or diverged, 2 wrong usage."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import NoReturn

import psycopg

from aggregator import (
    cli_run,  # importing a module of commands registers them, in this order
    db,
)
from aggregator.cli_base import app, say
from aggregator.errors import AggregatorError, Stopped

# isort: split
from aggregator import cli_read

# isort: split
from aggregator import cli_repair

__all__ = ["app", "cli_read", "cli_repair", "cli_run", "main"]

_INTERRUPTED = 130
"""Exit code of SIGINT: also what typer makes of a KeyboardInterrupt."""


def main() -> None:
    """Run the command; turn every expected error into one line and an exit code."""
    terminated = threading.Event()

    def terminate(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one does not wait for the database
        terminated.set()
        raise KeyboardInterrupt  # psycopg knows it, and cancels the statement

    # Also because process 1 of a container would not notice SIGTERM at all.
    signal.signal(signal.SIGTERM, terminate)
    try:
        try:
            app(prog_name="aggregator")
        finally:
            sys.stdout.flush()  # here, where a full disk is still an error like others
    except AggregatorError as exc:
        _fail(str(exc), exc.exit_code)
    except psycopg.Error as exc:
        _fail(db.one_line(exc), 1)
    except UnicodeEncodeError as exc:
        _fail(f"the output cannot be written in {exc.encoding}: set PYTHONIOENCODING=utf-8", 1)
    except BrokenPipeError:  # the reader has what it wanted
        _drop_output()
        sys.exit(1)
    except OSError as exc:
        _drop_output()
        _fail(str(exc), 1)
    except (KeyboardInterrupt, SystemExit) as exc:
        if isinstance(exc, SystemExit) and exc.code != _INTERRUPTED:
            raise
        _fail("interrupted; what was committed stays good", Stopped.exit_code if terminated.is_set() else _INTERRUPTED)


def _fail(text: str, code: int) -> NoReturn:
    say(f"aggregator: {text}", "red")
    sys.exit(code)


def _drop_output() -> None:
    """Send what is still buffered nowhere: the interpreter would try once more at its end, with a traceback."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
