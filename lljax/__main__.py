"""`python -m lljax` is the `lljax` command."""

from lljax.cli import main

if __name__ == "__main__":
    main()
