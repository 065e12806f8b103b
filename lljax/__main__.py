"""`python -m lljax` is the `lljax` command."""

from lljax.cli import main

main()
