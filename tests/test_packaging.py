"""What a release is made of: one version, addresses that agree, archives that install anywhere."""

import configparser
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import lljax

ROOT = Path(__file__).parent.parent


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def metadata():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    return settings["metadata"]


@pytest.fixture(scope="module")
def addresses(metadata):
    return dict(line.split(" = ") for line in metadata["project_urls"].strip().splitlines())


def test_there_is_one_version(metadata):
    assert metadata["version"] == "attr: lljax.__version__"
    assert re.search(rf"^version: {re.escape(lljax.__version__)}$", read("CITATION.cff"), re.M)
    newest = re.search(r"^## (\S+)", read("CHANGELOG.md"), re.M)
    assert newest[1] == lljax.__version__


def test_addresses_agree(metadata, addresses):
    assert set(addresses) == {"Documentation", "Source", "Issues", "Changelog"}
    source = addresses["Source"]
    assert metadata["url"] == source
    assert addresses["Issues"].startswith(source)
    assert addresses["Changelog"] == f"{source}/blob/main/CHANGELOG.md"
    citation = read("CITATION.cff")
    assert f"repository-code: {source}\n" in citation
    assert f"url: {addresses['Documentation']}\n" in citation
    assert f"git+{source}" in read("docs/start.md")


def run(*command, **settings):
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, **settings
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """(sdist, wheel), the wheel built from the sdist, of the files that git knows."""
    source = tmp_path_factory.mktemp("source")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--no-isolation", source)
    (sdist,), (wheel,) = (source / "dist").glob("*.tar.gz"), (source / "dist").glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_the_archives_pass_the_index_checks(archives):
    words = run(sys.executable, "-m", "twine", "--no-color", "check", "--strict", *archives)
    assert words.count("PASSED") == 2


@pytest.mark.slow
def test_the_sdist_installs_into_an_empty_environment(archives, tmp_path):
    """It is built where there is no jax, and brings all that its commands need."""
    sdist, _ = archives
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / "bin"
    run(binaries / "pip", "install", "--quiet", sdist)
    for command in ((binaries / "lljax",), (binaries / "python", "-m", "lljax")):
        for argument in ("version", "--version"):
            words = run(*command, argument, cwd=tmp_path)
            assert words == f"lljax {lljax.__version__}\n"
    where = run(binaries / "python", "-c", "import lljax; print(lljax.__file__)", cwd=tmp_path)
    assert where.startswith(str(tmp_path))
