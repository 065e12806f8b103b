"""Runs the README's embedding example: `python tests/readme_example.py README.md`."""

import re
import sys
from pathlib import Path


def code(readme: Path) -> str:
    section = readme.read_text(encoding="utf-8").partition("\n## Embed it\n")[2]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found
    return found.group(1)


if __name__ == "__main__":
    exec(compile(code(Path(sys.argv[1])), "README", "exec"))
