"""Errors whose message is one line for the user, and the exit statuses of all commands.

| exit status | meaning | what to do |
|---|---|---|
| 0 | finished | |
| 1 | a check has found something (`mf-check`, `mf-doctor`, `mf-tables`); elsewhere an error of the program itself | |
| 2 | wrong input: ValueError and all errors here that derive from it, OSError | correct what the line names |
| 70 | training cannot go on: too many skipped steps, damaged data, a full disk (TrainingError) | correct, start again |
| 71 | another process died, or nothing was finished within the time limit | start the same command again |
| 75 | SIGTERM or SIGUSR1: training saved at the end of the step (EX_TEMPFAIL) | start the same command again |
| 130 | Ctrl-C; training has saved | start the same command again |

The last checkpoint is intact in every case. These are the statuses of the processes; torchrun and `accelerate launch`
leave with a status of their own, 1, when any of them is not 0. torchrun passes SIGTERM and SIGINT on and kills what is
left 30 s later; SIGUSR1 ends torchrun alone, unless --signals-to-handle names it, so send that to the processes.
If a library never releases Python's global lock, the second timer of `distill.loop.watchdog` exits with 1.
"""

WRONG_INPUT = 2
CANNOT_GO_ON = 70
LOST = 71
SAVED_AND_LEFT = 75
INTERRUPTED = 130


class WeightsError(ValueError):
    """A run folder or weight file cannot be used. The message is one line that names it and the reason."""


class FeatureError(ValueError):
    """A feature folder cannot be used or made. The message is one line with the reason and what to do."""


class MediaError(ValueError):
    """A media file cannot be used. The message is one line that names the file and the reason."""


class TrainingError(RuntimeError):
    """Training cannot continue. The message is one line for the user; the last checkpoint is intact."""

    def __init__(self, message: str, *, status: int = CANNOT_GO_ON) -> None:
        super().__init__(message)
        self.status = status


def exit_status(error: BaseException) -> int | None:
    """Exit status of a command that an error ends; None for errors of the program itself, which print a traceback."""
    if isinstance(error, TrainingError):
        return error.status
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return WRONG_INPUT if isinstance(error, ValueError | OSError) else None
