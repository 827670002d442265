"""The one exception a user is meant to read."""


class InputError(Exception):
    """Bad input from the user: a config key, a path, a data file, a model.

    The message is one line that names the thing and the mend; the command line prints it and exits with status 2.
    """
