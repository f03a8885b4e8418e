"""Errors a user can mend become one line on standard error and an exit status; anything else keeps its traceback.

The statuses are those of `distill.loop.exits`: 2 wrong input, 70 and 71 training that cannot go on, 130 Ctrl-C.
"""

import functools
import io
import os
import sys
import traceback
from collections.abc import Callable

from distill.loop.exits import INTERRUPTED, WRONG_INPUT, TrainingError


def one_line_errors(command: Callable[[], None]) -> Callable[[], None]:
    """Decorator for entry points. ValueError, OSError and TrainingError carry messages meant for users.

    What the console cannot show (captions on one that is not UTF-8, bytes of file names) is printed as an escape.
    """

    @functools.wraps(command)
    def guarded() -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            command()
        except TrainingError as error:
            _leave(error, error.status)
        except BrokenPipeError:  # whoever read the output has enough
            os._exit(0)
        except (ValueError, OSError) as error:
            _leave(error, WRONG_INPUT)
        except KeyboardInterrupt:
            print("interrupted; what was finished is kept, and the same command goes on from there", file=sys.stderr)
            _end(INTERRUPTED)
        except Exception:
            if not _several():
                raise
            traceback.print_exc()
            _end(1)

    return guarded


def _leave(error: Exception, status: int) -> None:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    _end(status)


def _end(status: int) -> None:
    if _several():  # leaving in order may wait for processes that are gone
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _several() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1
