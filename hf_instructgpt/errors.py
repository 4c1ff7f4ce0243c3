"""The one error a user can mend: the command line prints it without a traceback and exits with code 2."""


class InputError(ValueError):
    """Bad input from the user. The message names the field, the row or the file, and the way out."""
