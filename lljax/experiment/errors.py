"""What the command line tells its user, as exceptions."""


class UserError(Exception):
    """The user's input is wrong; the command line prints it and exits with 2."""
