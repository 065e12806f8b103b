"""Text from outside, made fit to be shown and kept.

Names of files, answers of servers and documents may hold control sequences that move a terminal's
cursor or recolour it, and a URL may hold a password or a token.
"""

import re

# C0 but tab and line end, DEL and C1; marks that reorder what is read; halves of surrogate pairs.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_END = r"(?=[\'\")\]>]*[.,:;]?(?:\s|$))"
_URL = re.compile(
    r"\b([a-zA-Z][a-zA-Z0-9+.-]*://)([^\s/?#@]*@)?([^\s?#]*)"
    rf"((?:\?\.\.\.|[?#]\S*?){_END})?"  # what was left out stays so
)


LEFT_OUT = "?..."
"""What stands for a URL's query and fragment where they are left out."""


def printable(text: str) -> str:
    r"""The text with U+FFFD for every character that a terminal would obey or could not show.

    >>> printable("a\x1b[31mb\n")
    'a�[31mb\n'
    """
    return _UNPRINTABLE.sub("\ufffd", text)


def without_secrets(text: str) -> str:
    """The text with its URLs' user names, passwords, queries and fragments left out.

    >>> without_secrets("https://me:pass@host.org/a.txt?token=1#top is out of reach")
    'https://host.org/a.txt?... is out of reach'
    >>> without_secrets("--data.path 'https://host.org/get?token=1' was given")
    "--data.path 'https://host.org/get?...' was given"
    >>> without_secrets("https://host.org/get?...")
    'https://host.org/get?...'
    """
    return _URL.sub(lambda url: url[1] + url[3] + (LEFT_OUT if url[4] else ""), text)
