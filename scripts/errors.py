"""Errors a user can mend become one line on standard error and exit status 2; anything else keeps its traceback."""

import functools
import sys
from collections.abc import Callable


def one_line_errors(command: Callable[[], None]) -> Callable[[], None]:
    """Decorator for entry points. ValueError and OSError carry messages meant for users; Ctrl-C leaves with 130."""

    @functools.wraps(command)
    def guarded() -> None:
        try:
            command()
        except (ValueError, OSError) as error:
            text = " ".join(str(error).split())
            print(f"error: {text}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted; what was finished is kept, and the same command goes on from there", file=sys.stderr)
            sys.exit(130)

    return guarded
