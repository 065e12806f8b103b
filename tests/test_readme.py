"""What the README shows is true: its code runs, its names and files exist."""

import re
import subprocess
import sys
from pathlib import Path

import lljax

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_embedding_example():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    auc, weight = re.findall(r"([\d.]+) -> ([\d.]+)", done.stdout)
    assert float(auc[1]) < 0.7 * float(auc[0])
    assert float(weight[1]) < 0.1 < float(weight[0])


def test_the_table_of_functions_is_complete():
    table = "".join(line for line in README.splitlines() if line.startswith("| `"))
    named = set(re.findall(r"`(\w+)", table))
    functions = {name for name in lljax.__all__ if name[0].islower()}
    assert functions - named <= {"scaling_law_improvement"}


def test_files_and_make_targets_exist():
    for path in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (ROOT / path).exists(), path
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`?make (\w+)`?", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
