"""What `lljax.artifacts` and `lljax.report` know of the rest, and what importing them costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lljax

ARTIFACTS = ("lljax.artifacts", "lljax.errors", "lljax.safe_text", "numpy")
REPORT = ("lljax.report", "lljax.scaling_law", "matplotlib", "jinja2")


def imported_names(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield node.module


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("artifacts", ARTIFACTS),
        ("report", (*ARTIFACTS, *REPORT)),
    ],
)
def test_a_package_imports_only_what_it_may(package, allowed):
    paths = list((Path(lljax.__file__).parent / package).rglob("*.py"))
    assert paths
    for path in paths:
        for name in imported_names(path):
            known = name.split(".")[0] in sys.stdlib_module_names
            parts = name.split(".")
            prefixes = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
            assert known or any(prefix in allowed for prefix in prefixes), f"{path}: {name}"


def test_tables_and_artifacts_load_no_drawing_library():
    code = (
        "import sys; from lljax.report.tables import summary_table; "
        "from lljax.report import sweep_table; from lljax.artifacts import files, results; "
        "print([name for name in ('matplotlib', 'jinja2') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
