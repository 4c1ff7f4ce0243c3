"""The error for bad input: the command line prints it in one line, without a traceback, and exits with code 2."""


class InputError(ValueError):
    """Bad input from the user. The message names the field, the row or the file, and says how to fix it."""
