"""The documentation site: its checks can fail, and the real one is built and passes them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import FAST_COMPILATION

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "docs"))

import check  # noqa: E402


@pytest.fixture
def page(tmp_path):
    def write(text, name="index.html"):
        (tmp_path / name).write_text(text)
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('<a href="gone.html">x</a>', "which is not there"),
        ('<a href="#gone">x</a>', "no such anchor"),
        ('<script src="https://cdn.example/x.js"></script>', "from another host"),
        ('<link rel="stylesheet" href="//fonts.example/x.css">', "from another host"),
        ('<p style="background: url(https://x.example/x.png)">', "from another host"),
    ],
)
def test_a_fault_of_a_page_is_found(page, text, fault):
    (found,) = check.check_links(page(text))[0]
    assert found.endswith(fault) or fault in found


def test_a_style_that_loads_a_font_is_found(page):
    site = page("@font-face { src: url('https://fonts.example/x.woff2') }", "site.css")
    (found,) = check.check_links(site)[0]
    assert "fonts.example" in found


def test_a_link_to_another_site_is_none_of_ours(page):
    site = page('<a id="here" href="https://arxiv.org/abs/2402.17759">x</a><a href="#here">y</a>')
    assert check.check_links(site) == ([], 1, 1)


def test_every_block_of_code_is_executed_or_says_why_not(tmp_path, monkeypatch):
    assert check.check_blocks()[0] == []
    path = tmp_path / "page.md"
    monkeypatch.setattr(check, "ROOT", tmp_path)
    monkeypatch.setattr(check, "sources", lambda: [path])
    path.write_text("```python\n1 + 1\n```\n")
    assert "neither executed nor marked" in check.check_blocks()[0][0]
    path.write_text("<!-- executed: tests/test_gone.py::test_it -->\n```python\n1 + 1\n```\n")
    assert "there is none" in check.check_blocks()[0][0]
    path.write_text("<!-- not executed: it would take a year -->\n```python\n1 + 1\n```\n")
    assert check.check_blocks() == ([], {"cell": 0, "executed": 0, "not executed": 1})


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_passes_its_checks(tmp_path):
    pytest.importorskip("furo", reason="pip install -e '.[docs]'")
    site, doctrees = tmp_path / "site", tmp_path / "doctrees"
    command = ["-m", "sphinx", "-q", "-E", "-n", "-W", "--keep-going", "-j", "auto", "-d"]
    for arguments in ([*command, doctrees, ROOT / "docs", site], [ROOT / "docs/check.py", site]):
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | {"XLA_FLAGS": FAST_COMPILATION},
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert "0 faults" in done.stdout
    assert len(list((site / "notebooks").glob("*.ipynb"))) == 6


def test_a_tutorial_is_a_notebook_that_needs_nothing_around_it():
    pytest.importorskip("myst_nb", reason="pip install -e '.[docs]'")
    sys.path.append(str(ROOT / "docs" / "_ext"))
    import notebooks

    pages = notebooks.tutorials(ROOT / "docs")
    assert len(pages) == 6
    for page in pages:
        notebook = notebooks.to_notebook(page, "https://source.example", "https://site.example")
        first, *cells = notebook.cells
        assert first.source == '%pip install -q "lljax @ git+https://source.example"'
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        assert text.startswith("# ")
        assert "](http" in text
        assert not [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        compile(code, page.name, "exec")
