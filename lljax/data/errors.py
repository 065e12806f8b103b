"""The one error of `lljax.data`."""

from lljax.errors import UserError


class TextError(UserError):
    """The text or a setting about it cannot be used; says which, why, and what to do."""
