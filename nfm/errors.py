"""The one exception that is the user's to mend."""


class InputError(ValueError):
    """Bad input: the message is one sentence that names the key or file, what came, what was wanted and the way out.

    The command line prints it and exits with status 2; nothing has been lost or half-written.
    """
