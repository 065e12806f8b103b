"""Checks a built site: `python docs/check.py docs/_build/html`.

- Every link within the site leads to a page, a file, and an anchor that is there.
- No page asks another host for a script, a style, a font or a picture.
- Every block of code was executed, or says in its source why not:

    <!-- executed: tests/test_readme.py::test_the_recipes_run -->      above a block, or
    <!-- blocks in python: executed: tests/test_readme.py::... -->     for a whole page, or
    <!-- not executed: it needs a cluster -->

- Every name of `lljax.__all__` has its place in the API, and every flag of the shipped configs one
  among the options.
"""

import contextlib
import io
import itertools
import re
import sys
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path

from markdown_it import MarkdownIt

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

# What a browser loads by itself when it shows a page.
_LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src"}
_LOADING_RELATIONS = {"stylesheet", "icon", "preload", "prefetch", "modulepreload", "manifest"}
_IN_CSS = re.compile(r"(?:url\(|@import)\s*[\"']?\s*((?:https?:)?//[^\"')\s]+)")
_NO_CODE = ("{eval-rst}", "{toctree}", "{program}", "{option}", "{note}", "{warning}")
_MARK = re.compile(r"<!-- (?:blocks in (\w+): )?(executed|not executed): (.+?) -->", re.DOTALL)
_CONFIGS = ("perceptron", "noisy_labels", "curate")


class Page(HTMLParser):
    """The anchors, links and loaded files of a page."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.loaded = set(), set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.links.add(given["href"])
        if tag == "link" and _LOADING_RELATIONS & set((given.get("rel") or "").split()):
            self.loaded.add(given["href"])
        if given.get(_LOADED.get(tag, "")):
            self.loaded.add(given[_LOADED[tag]])
        self.loaded |= set(_IN_CSS.findall(given.get("style") or ""))


def is_elsewhere(address):
    parts = urllib.parse.urlsplit(address)
    return bool(parts.netloc) or parts.scheme in ("http", "https", "mailto")


def check_links(site):
    """(faults, how many links within the site were followed)."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    faults, followed = [], 0
    for path, page in pages.items():
        where = path.relative_to(site)
        for address in sorted(page.loaded):
            if is_elsewhere(address):
                faults.append(f"{where}: loads {address} from another host")
        for address in sorted(page.links | page.loaded):
            if is_elsewhere(address) or address.startswith("data:"):
                continue
            followed += 1
            parts = urllib.parse.urlsplit(address)
            target = path
            if parts.path:
                target = (path.parent / urllib.parse.unquote(parts.path)).resolve()
            anchor = urllib.parse.unquote(parts.fragment)
            if not target.is_file():
                faults.append(f"{where}: a link to {address}, which is not there")
            elif anchor and target in pages and anchor not in pages[target].anchors:
                faults.append(f"{where}: a link to {address}, where there is no such anchor")
    for style in site.rglob("*.css"):
        for address in _IN_CSS.findall(style.read_text(encoding="utf-8")):
            faults.append(f"{style.relative_to(site)}: loads {address} from another host")
    return faults, len(pages), followed


def sources():
    """The Markdown files that the site is made of."""
    pages = [path for path in sorted(DOCS.rglob("*.md")) if "_build" not in path.parts]
    for page in list(pages):
        included = re.findall(r"^<!-- page: (\S+) -->$", page.read_text("utf-8"), re.MULTILINE)
        pages += [ROOT / path for path in included]
    return pages


def _is_there(test):
    """Whether `tests/FILE.py::NAME` exists."""
    file, _, name = test.partition("::")
    path = ROOT / file
    return path.is_file() and (not name or f"def {name}(" in path.read_text(encoding="utf-8"))


def check_blocks():
    """(faults, blocks executed by the build, by tests, and not at all)."""
    faults, counts = [], {"cell": 0, "executed": 0, "not executed": 0}
    for path in sources():
        where = path.relative_to(ROOT)
        text = path.read_text(encoding="utf-8")
        of_page = {mark[0]: mark[1:] for mark in _MARK.findall(text) if mark[0]}
        before = ""
        for token in MarkdownIt("commonmark").enable("table").parse(text):
            if token.type in ("fence", "code_block"):
                info = token.info.strip()
                if info.startswith("{code-cell}"):
                    counts["cell"] += 1
                elif not info.startswith(_NO_CODE):
                    mark = _MARK.search(before)
                    kind, reason = mark.groups()[1:] if mark else of_page.get(info, (None, ""))
                    line = f"{where}:{token.map[0] + 1}"
                    if kind is None:
                        faults.append(f"{line}: a block of code, neither executed nor marked")
                    elif kind == "executed" and not _is_there(reason):
                        faults.append(f"{line}: is said to be executed by {reason}; there is none")
                    else:
                        counts[kind] += 1
            before = token.content if token.type == "html_block" else ""
    return faults, counts


def check_docstrings(site):
    """(faults, examples of docstrings, which pytest executes)."""
    faults, examples = [], 0
    for path in (site / "api").glob("*.html"):
        text = path.read_text(encoding="utf-8")
        examples += text.count('<div class="doctest') + text.count('<div class="highlight-pycon')
        if "sketch" in re.findall(r'class="([\w -]*sketch[\w -]*)', text):
            faults.append(f"api/{path.name}: code in a docstring that is no doctest")
        plain = re.sub(r"<[^>]+>", "", text)
        faults += [
            f"api/{path.name}: {fault}"
            for fault in re.findall(r"[\w.]+ has no words of its own", plain)
        ]
    return faults, examples


def check_names(site):
    """(faults, public names): all of them are in the API's inventory."""
    from sphinx.util.inventory import InventoryFile

    import lljax

    with (site / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, path: path)
    documented = {name for kind in inventory if kind.startswith("py:") for name in inventory[kind]}
    missing = [name for name in lljax.__all__ if f"lljax.{name}" not in documented]
    faults = [
        f"lljax.{name} is on no page: name its module in docs/api/, <!-- api: MODULE -->"
        for name in missing
    ]
    return faults, len(lljax.__all__), len(documented)


def check_flags(site):
    """(faults, flags): those of the commands' help are among the options."""
    from lljax import cli

    options = (site / "options.html").read_text(encoding="utf-8")
    described = set(re.findall(r'id="cmdoption-[\w-]*?--?([\w.-]+)"', options))
    described |= set(re.findall(r'class="pre">--([\w.-]+)', options))
    faults, found = [], set()
    for command, config in itertools.product(("run", "check", "attribute"), _CONFIGS):
        words = io.StringIO()
        with contextlib.redirect_stdout(words), contextlib.suppress(SystemExit):
            cli.call([command, config, "--help"])
        plain = re.sub(r"\x1b\[[0-9;]*m", "", words.getvalue())
        flags = set(re.findall(r"^\W*?--(\w[\w.-]*)", plain, re.MULTILINE))
        positive = {flag for flag in flags if not re.search(r"(^|\.)no-", flag)}
        faults += [f"options.html: no --{flag}, of {config}" for flag in positive - described]
        found |= positive
    return sorted(set(faults)), len(found)


def main(site):
    links, pages, followed = check_links(site)
    blocks, counts = check_blocks()
    docstrings, examples = check_docstrings(site)
    names, public, documented = check_names(site)
    flags, number = check_flags(site)
    faults = [*links, *blocks, *docstrings, *names, *flags]
    print(*faults, sep="\n", file=sys.stderr)
    print(
        f"{pages} pages, {followed} links within the site; {counts['cell']} cells executed by the "
        f"build, {counts['executed']} blocks by tests, {examples} doctests, "
        f"{counts['not executed']} blocks not executed, with a reason; {public} public names, "
        f"{documented} documented objects; {number} flags; {len(faults)} faults"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
