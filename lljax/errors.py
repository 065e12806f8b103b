"""What the command line tells its user, as exceptions."""


class UserError(ValueError):
    """The user's input is wrong; the command line prints it and exits with 2."""


class RunFailed(Exception):
    """The computation cannot go on; the command line prints it and exits with 1."""
