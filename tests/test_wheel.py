"""What a wheel brings: the core beside three packages, and the configs under their names."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import readme_example
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent


def with_dependencies(names):
    """The installed distributions of these names and of all that they need."""
    found, wanted = {}, list(names)
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        found[name] = importlib.metadata.distribution(name)
        for line in found[name].requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted.append(requirement.name)
    return found.values()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with jax, optax and chex, what these need, and lljax from its wheel."""
    folder, source = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("lljax", "configs"):  # a copy: a build leaves files beside its source
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    for distribution in with_dependencies(["jax", "optax", "chex"]):
        for top in {path.parts[0] for path in distribution.files} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(distribution.locate_file(top))
    return folder


def run_beside_three_packages(site, code, tmp_path):
    """-I and -S: nothing but the standard library and the folder is on the path."""
    code = f"import sys; sys.path.insert(0, {str(site)!r})\n{code}"
    command = [sys.executable, "-I", "-S", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)


def test_the_readmes_example_runs_beside_jax_optax_and_chex_alone(site, tmp_path):
    code = readme_example.code(ROOT / "README.md")
    code += "\nimport importlib.util\nassert importlib.util.find_spec('flax') is None\n"
    code += f"assert lljax.__file__.startswith({str(site)!r})\n"
    done = run_beside_three_packages(site, code, tmp_path)
    assert done.returncode == 0, done.stderr
    auc, weight = re.findall(r"([\d.]+) -> ([\d.]+)", done.stdout)
    assert float(auc[1]) < 0.7 * float(auc[0])
    assert float(weight[1]) < 0.5 * float(weight[0])


def test_a_command_whose_package_is_missing_names_it(site, tmp_path):
    code = "from lljax import cli; print(cli.call(['run', 'perceptron']), cli.call(['--help']))"
    done = run_beside_three_packages(site, code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("2 0\n")
    assert re.search(r"`lljax run` needs the package \w+.* pip install \w+", done.stderr)


@pytest.mark.slow
def test_the_configs_travel_under_their_names(site, tmp_path):
    shipped = {path.name for path in (site / "lljax" / "configs").glob("*.py")}
    assert shipped == {path.name for path in (ROOT / "configs").glob("*.py")}
    # With this environment's packages behind it, the wheel's own code and configs are used.
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); import lljax; from lljax import cli; "
        f"assert lljax.__file__.startswith({str(site)!r}); sys.exit(cli.call(sys.argv[1:]))"
    )

    def call(*arguments):
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    listed = call("run")
    assert listed.returncode == 2
    assert re.search(r"^  perceptron +The paper's linear", listed.stderr, re.MULTILINE)
    assert "transformer_table2" not in listed.stderr  # that is one for `lljax sweep`
    done = call(
        *("run", "perceptron", "--inner.num-steps", "20", "--outer.num-steps", "1"),
        *("--data.num-train", "64", "--data.num-test", "64", "--data.num-validation", "64"),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "perceptron" / "report.html").exists()
