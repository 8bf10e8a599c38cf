"""The one exception for a user's mistake."""


class InputError(ValueError):
    """A mistake in what the user gave.

    The message says what is wrong, which value, what is legal and what to do, in a few lines;
    the command line prints it as it is and exits with code 2.
    """
