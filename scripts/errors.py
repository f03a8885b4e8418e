"""Errors that a user can correct become one line on standard error and an exit status; others print a traceback.

`teacher.files.errors` lists the statuses.
"""

import functools
import io
import os
import sys
import traceback
from collections.abc import Callable

from distill.processes import this_process
from teacher.files.errors import exit_status


def one_line_errors(command: Callable[[], None]) -> Callable[[], None]:
    """Decorator for entry points. Errors with an exit status of their own (`teacher.files.errors`) carry
    messages meant for users.

    What the console cannot show (captions on one that is not UTF-8, bytes of file names) is printed as an escape.
    """

    @functools.wraps(command)
    def guarded() -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            command()
        except BrokenPipeError:  # whoever read the output has enough
            os._exit(0)
        except (Exception, KeyboardInterrupt) as error:
            status = exit_status(error)
            if status is not None:
                print(_line(error), file=sys.stderr)
            elif this_process().several:
                traceback.print_exc()
            else:
                raise
            _end(1 if status is None else status)

    return guarded


def _line(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; finished results are saved, and the same command continues from there"
    return f"error: {' '.join(str(error).split())}"


def _end(status: int) -> None:
    if this_process().several:  # leaving in order may wait for processes that are gone
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
