"""The tutorials as notebooks beside the site: to be downloaded, and opened anywhere.

They have no outputs; their first cell installs lljax, and their links lead to the site.
"""

import posixpath
import re
from pathlib import Path

import nbformat
from myst_nb.core.read import read_myst_markdown_notebook
from nbformat.v4 import new_code_cell

FOLDER = "tutorials"
_LINK = re.compile(r"(\]\()(?!\w+:)([^)#\s]+)(#[^)]*)?\)")


def tutorials(source_folder):
    """The sources that are notebooks."""
    pages = sorted((Path(source_folder) / FOLDER).glob("*.md"))
    return [page for page in pages if "{code-cell}" in page.read_text(encoding="utf-8")]


def to_notebook(path, source_url, site_url):
    """A tutorial as a notebook for a place where nothing is installed."""
    notebook = read_myst_markdown_notebook(path.read_text(encoding="utf-8"), path=path)
    install = new_code_cell(f'%pip install -q "lljax @ git+{source_url}"', id="install")
    notebook.cells.insert(0, install)

    def to_site(match):
        target = posixpath.normpath(posixpath.join("docs", FOLDER, match[2]))
        page = re.fullmatch(r"docs/(.+)\.md", target)
        place = f"{site_url}/{page[1]}.html" if page else f"{source_url}/blob/main/{target}"
        return f"{match[1]}{place}{match[3] or ''})"

    for number, cell in enumerate(notebook.cells):
        cell.metadata.clear()
        cell["id"] = "install" if number == 0 else f"cell-{number}"
        if cell.cell_type == "markdown":
            cell.source = _LINK.sub(to_site, cell.source)
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    nbformat.validate(notebook)
    return notebook


def _write(app, exception):
    if exception is None and app.builder.format == "html":
        folder = Path(app.outdir) / "notebooks"
        folder.mkdir(exist_ok=True)
        for path in tutorials(app.srcdir):
            notebook = to_notebook(path, app.config.source_url, app.config.site_url)
            nbformat.write(notebook, folder / f"{path.stem}.ipynb")


def _link(app, pagename, templatename, context, doctree):
    """A line above a tutorial that leads to its notebook."""
    if pagename.startswith(f"{FOLDER}/") and pagename != f"{FOLDER}/index":
        name = f"{posixpath.basename(pagename)}.ipynb"
        context["body"] = (
            f'<p class="notebook-links">Executed when this site was built. '
            f'<a href="../notebooks/{name}" download>Download the notebook</a> and open it in '
            f"Jupyter, Colab or Kaggle: its first cell installs lljax.</p>\n{context['body']}"
        )


def setup(app):
    app.connect("build-finished", _write)
    app.connect("html-page-context", _link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
