"""The errors a user may see: a sentence that says what is wrong and the command that fixes it.

Everything else that reaches a user is a bug of ours and keeps its traceback.
"""


class NanochatError(Exception):
    """An error of the user's world (input, disk, network), never of our code.

    message: what is wrong, with the value. hint: the next command to paste, or "".
    """

    exit_code = 1
    is_final = False
    """Whether the same command would end the same way: nothing starts it again by itself."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(NanochatError):
    """The command line or the settings are wrong."""

    exit_code = 2
    is_final = True


class MissingError(NanochatError):
    """Something that an earlier command makes is not there; the hint is that command."""

    exit_code = 3
    is_final = True


class DataError(NanochatError):
    """Data or network: unreadable, corrupt, cut short."""

    exit_code = 4


class LostError(DataError):
    """What was saved is damaged, all of it: whether to begin again is for a person to say."""

    is_final = True


class CapacityError(NanochatError):
    """Out of memory or disk."""

    exit_code = 5
    is_final = True


class NumericalError(NanochatError):
    """Training met non-finite numbers several steps in a row."""

    exit_code = 6
    is_final = True


class CheckError(NanochatError):
    """A check that the user asked for failed."""

    exit_code = 7
    is_final = True


class StoppedError(NanochatError):
    """Stopped on request with everything saved; `nanochat resume` continues."""

    exit_code = 75


class InterruptError(NanochatError):
    """Stopped on request in the middle of work that has to be done again; the hint is the command."""

    exit_code = 130
