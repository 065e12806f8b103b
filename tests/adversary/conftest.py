"""Collects the verdicts of all cases and prints them as a table, whoever ran them."""

import os
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from adversary.damage import kind_of
from adversary.runs import RUN, Runs, TextRuns
from adversary.server import Server
from adversary.verdicts import VERDICTS, Verdict

SEED = int(os.environ.get("LLJAX_ADVERSARY_SEED", "0"))
REPEATS = int(os.environ.get("LLJAX_ADVERSARY_REPEATS", "1"))
_PROPERTY = "adversary"
_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.slow)


class Cases:
    """The verdicts of one test, which fails if one of them is a fault."""

    def __init__(self, node, category):
        self._node, self._category = node, category
        self._faults = []

    def add(self, case, verdict: Verdict):
        entry = (self._category, str(case), verdict.verdict, verdict.reason)
        self._node.user_properties.append((_PROPERTY, entry))
        if verdict.is_fault:
            self._faults.append(f"{case}: {verdict.verdict}: {verdict.reason[:300]}")

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None and self._faults:
            pytest.fail("\n".join(self._faults), pytrace=False)


@pytest.fixture
def cases(request):
    """`with cases(category) as verdicts: verdicts.add(case, verdict)`."""
    return lambda category: Cases(request.node, category)


@pytest.fixture
def rng(request):
    """Random numbers of the test's own, the same whichever tests run beside it."""
    return np.random.default_rng([SEED, zlib.crc32(request.node.nodeid.encode())])


@pytest.fixture(scope="session")
def repeats():
    return REPEATS


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def runs(tmp_path_factory, server):
    return Runs(tmp_path_factory.mktemp("runs"), server, RUN)


@pytest.fixture(scope="session")
def text_runs(tmp_path_factory, server):
    return TextRuns(tmp_path_factory.mktemp("text_runs"), server)


def pytest_terminal_summary(terminalreporter):
    """The table of categories and verdicts, and the faults."""
    reports = [report for group in terminalreporter.stats.values() for report in group]
    entries = [
        entry
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, entry in report.user_properties
        if name == _PROPERTY
    ]
    if not entries:
        return
    counts = Counter((category, verdict) for category, _, verdict, _ in entries)
    categories = sorted({category for category, _ in counts})
    columns = [*VERDICTS, *sorted({verdict for _, verdict in counts} - set(VERDICTS))]
    write = terminalreporter.write_line
    terminalreporter.section(f"adversary: seed {SEED}, {len(entries)} cases")
    width = max(map(len, categories)) + 2
    write("".ljust(width) + "".join(f"{column:>{len(column) + 3}}" for column in columns))
    for category in categories:
        cells = (f"{counts[category, column]:>{len(column) + 3}}" for column in columns)
        write(category.ljust(width) + "".join(cells))
    faults = [
        ((category, kind_of(case), verdict), reason)
        for category, case, verdict, reason in entries
        if verdict not in VERDICTS
    ]
    write(f"\nfaults: {len(faults)}, of these kinds:")
    examples = dict(reversed(faults))  # the first of each kind
    for kind, number in sorted(Counter(kind for kind, _ in faults).items()):
        reason = " ".join(examples[kind].split())
        write(f"  {number} x {': '.join(kind)}: {reason[:200]}")
