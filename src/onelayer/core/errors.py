"""Errors that are not programming mistakes."""


class InputError(ValueError):
    """A mistake in the user's input.

    The message says what is wrong, which value, what is legal and what to do, in a few lines; the
    command line prints it as it is and exits with code 2.
    """


class TrainingError(RuntimeError):
    """A training run that cannot go on, through no mistake in the user's input.

    The command line prints the message as it is and exits with code 1.
    """


class DivergedError(TrainingError):
    """The cost of every network is NaN or infinite."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; its type if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
