"""How the command line behaves where something is amiss: in words, and with a status."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ROOT, RUN, assert_refused, call, run_process, start

import lljax
from lljax.errors import RunFailed, StorageFailed, UserError
from lljax.failures import in_words

TASK = """
import jax.numpy as jnp
from lljax import tasks

def loss_fn(w, x):
    {statement}
    return (x * w - x) ** 2

def build(config):
    points = jnp.linspace(-1, 1, 8)
    return tasks.Problem(
        loss_fn=loss_fn, optimizer=tasks.inner_optimizer(config.inner), params=jnp.zeros(()),
        train=points, desired=points, validation=points, test=points, num_symbols=2)

def get_config():
    return tasks.ExperimentConfig(inner=tasks.InnerConfig(num_steps=5))

def get_task():
    return tasks.Task("points", tasks.ExperimentConfig, build)
"""


@pytest.mark.parametrize("arguments", [("help",), ("-h",), ("help", "help")])
def test_help_as_a_word(arguments):
    result = call(*arguments)
    assert result.returncode == 0
    assert "run only those that you trust" in result.stdout
    assert "LLJAX_TRACEBACK" in result.stdout


def test_help_of_a_command():
    for command in ("run", "sweep", "plan"):
        result = call("help", command)
        assert result.stdout == call(command, "--help").stdout
        assert "run only those that you trust" in " ".join(result.stdout.replace("│", " ").split())
    assert call("help", "report").stdout == call("report", "--help").stdout


@pytest.mark.parametrize("word", ["--version", "-V", "version"])
def test_version(word):
    assert re.fullmatch(r"lljax \d+\.\d+\.\d+\n", call(word).stdout)


def test_near_words_are_guessed():
    assert_refused(call("rnu"), "no command `rnu`", "Did you mean `run`?")
    assert_refused(call("help", "rnu"), "Did you mean `run`?")
    assert_refused(call("verison"), "Did you mean `version`?")
    assert_refused(call("report", "x", "--pfd"), "--pfd", "--pdf")


def test_tilde_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text("def get_config(): return 3\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    assert_refused(call("run", "~/mine.py"), f"{tmp_path}/mine.py must return")
    assert_refused(call("run", "perceptron", "--workdir=~/full"), f"{tmp_path}/full is not empty")
    assert_refused(call("report", "~/full"), f"{tmp_path}/full")
    unknown = "~nobody-of-this-name/x"
    for arguments in (("run", unknown), ("run", "perceptron", "--workdir", unknown)):
        assert_refused(call(*arguments), unknown)


def test_control_sequences_and_secrets_are_not_repeated(tmp_path):
    sequence, url = "\x1b[31mred", "https://me:word@host.org/x?token=1"
    config = tmp_path / "mine.py"
    config.write_text(f"raise ValueError({sequence!r} + ' ' + {url!r})\n")
    for result in (
        call("run", sequence),
        call("run", config),
        call(sequence),
        call("run", "perceptron", f"--{sequence}", url),
        call("run", "perceptron", "--workdir", sequence, "--inner.num-steps", url),
        call("report", sequence, url),
    ):
        assert result.returncode == 2
        assert "\x1b" not in result.stderr
        assert "\ufffd[31mred" in result.stderr or url.partition(":")[0] in result.stderr
        assert not re.search("word|token", result.stderr)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["defines no get_config()"]),
        ("def get_config(): pass\n", ["must return an ExperimentConfig", "got NoneType"]),
        ("def get_config(x): pass\n", ["TypeError", "missing 1 required", "'x'"]),
        ("get_config = 3\n", ["TypeError", "not callable"]),
        ("import sys\ndef get_config():\n    sys.exit(3)\n", ["SystemExit: 3 (line 3)"]),
        ("raise SystemExit\n", ["SystemExit"]),
        ("x = 1\ny = x / 0\n", ["ZeroDivisionError", "(line 2)"]),
        ("def get_config(:\n", ["SyntaxError", "line 1"]),
        ("import no_such_module_x\n", ["needs the module no_such_module_x"]),
        ("def get_config(): return get_config()\n", ["RecursionError"]),
        (b"\x00\x01\xff\xfe", ["cannot be read", "null bytes"]),
        (b"def get_config(): return '\xe9'\n", ["cannot be read", "SyntaxError"]),
        (b"\xef\xbb\xbfdef get_config():\r\n    return 3\r\n", ["got int"]),
        ("from lljax.tasks import *\ndef get_config(): return ExperimentConfig\n", ["the class"]),
        (
            "from lljax.tasks import *\nclass Mine(ExperimentConfig):\n    speed: int = 3\n"
            "def get_config(): return Mine()\n",
            ["Mine has settings of its own", "@dataclasses.dataclass(frozen=True)"],
        ),
        (
            "from lljax.tasks import *\nimport dataclasses\n@dataclasses.dataclass\n"
            "class Mine(ExperimentConfig.__base__):\n    pass\n"
            "def get_config(): return ExperimentConfig(seed='1')\n",
            ["seed must be a whole number; got '1'"],
        ),
        (
            TASK.format(statement="") + "def get_task(): return tasks.Task('a', 3, 4)\n",
            ["config_type must be a class"],
        ),
        (
            TASK.format(statement="") + "def get_task():\n    return tasks.Task("
            "'a', tasks.ExperimentConfig, build, free_settings='data.x')\n",
            ["Task.free_settings must be a tuple"],
        ),
    ],
)
def test_a_config_file_of_every_kind(content, words, tmp_path):
    config = tmp_path / "mine.py"
    config.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_refused(call("run", config, "--workdir", tmp_path / "w"), *words)
    assert not (tmp_path / "w").exists()


def test_a_config_that_is_a_folder(tmp_path, monkeypatch):
    assert_refused(call("run", tmp_path), "is a folder")
    assert_refused(call("run", "x" * 300), "cannot be read")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "perceptron").mkdir()  # named like a shipped config
    assert call("run", "perceptron", "--help").returncode == 0


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("raise MemoryError", ["not enough memory", "--inner.microbatch-size", "lljax plan"]),
        ("raise OSError(28, 'No space left', '/x/y')", ["/x/y", "No space left", "Free space"]),
        ("raise PermissionError(13, 'Denied', '/x')", ["/x", "Make it readable and writable"]),
        (
            "open('/dev/null/x')",
            ["/dev/null/x", "Move the file that stands in the place of a folder"],
        ),
        ("[][0]", ["mine.py, line 6, has failed: IndexError", "Its traceback is in"]),
    ],
)
def test_what_a_task_meets_is_told_in_words(statement, words, tmp_path):
    config = tmp_path / "mine.py"
    config.write_text(TASK.format(statement=statement))
    result = call("run", config, "--workdir", tmp_path / "w")
    assert_refused(result, "the run failed", *words, status=1)
    assert len(result.stderr.splitlines()) <= 10
    if "traceback" in result.stderr:
        path = re.search(r"Its traceback is in (\S+);", result.stderr)[1]
        assert "IndexError" in Path(path).read_text(encoding="utf-8")


def test_what_the_core_refuses_is_wrong_input():
    with pytest.raises(UserError, match=r"do not fit: `momentum` must be"), in_words("run"):
        lljax.exponentiated_gradient(0.1, momentum=2.0)


def test_the_traceback_is_shown_on_request(tmp_path, monkeypatch):
    config = tmp_path / "mine.py"
    config.write_text(TASK.format(statement="[][0]"))
    monkeypatch.setenv("LLJAX_TRACEBACK", "1")
    assert "Traceback" in call("run", config, "--workdir", tmp_path / "w").stderr


def test_a_defect_is_called_one_and_its_traceback_kept(tmp_path):
    words = "defect of lljax: ZeroDivisionError"
    with pytest.raises(RunFailed, match=words) as caught, in_words("run", tmp_path):
        1 / 0  # noqa: B018
    path = re.search(r"traceback is in (\S+);", str(caught.value))[1]
    assert "1 / 0" in Path(path).read_text(encoding="utf-8")
    assert not list(tmp_path.iterdir())  # it is no workdir
    Path(path).unlink()


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OSError(errno.EDQUOT, "Quota", "/a", None, "/b"), StorageFailed, "/a to /b .*quota"),
        (OSError(errno.EROFS, "Read-only", "/a"), StorageFailed, "Make its disk writable"),
        (OSError(errno.EMFILE, "Too many", "/a"), StorageFailed, "ulimit -n"),
        (OSError(errno.ENOSPC, "No space"), StorageFailed, "a file in /w .* then continues"),
        (OSError("odd"), StorageFailed, "a file in /w cannot be read or written: odd"),
        (
            ValueError("Error writing local file \"/w/c\": full [os_error_code='28']"),
            StorageFailed,
            "/w/c cannot be read or written: No space",
        ),
        (ModuleNotFoundError("x", name="tyro.conf"), UserError, "`lljax run` needs the .*tyro"),
    ],
)
def test_errors_of_the_system_become_sentences(error, kind, words):
    with pytest.raises(kind, match=words) as caught, in_words("run", Path("/w")):
        raise RuntimeError("outside") from error if kind is StorageFailed else raise_(error)
    assert "\n" not in str(caught.value)


def raise_(error):
    raise error


def python(*arguments, **settings):
    """A command line in a process of its own whose streams are settings of `subprocess.run`."""
    command = [sys.executable, "-m", "lljax", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, text=True, **settings)


def test_help_into_a_closed_pipe_ends_quietly():
    with start("--help") as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == -13


def test_stdout_that_is_full_is_told():
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = python("version", stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr == "lljax: stdout cannot be written: No space left on device\n"


@pytest.mark.slow
def test_a_run_whose_readers_go_away_does_its_work(tmp_path):
    for stream in ("stdout", "stderr"):
        workdir = tmp_path / stream
        with start(*RUN, workdir) as process:
            getattr(process, stream).close()
            other = process.stderr if stream == "stdout" else process.stdout
            text = other.read()
        assert process.returncode == (-13 if stream == "stdout" else 0)
        assert "Traceback" not in text
        assert (workdir / "report.html").exists()


@pytest.mark.slow
def test_closed_descriptors_do_not_become_files_of_the_run(tmp_path):
    command = f"exec {sys.executable} -m lljax {' '.join(map(str, (*RUN, tmp_path / 'w')))}"
    for closed in (">&- 2>&-", "<&- 2>&-"):
        done = subprocess.run(["sh", "-c", f"{command} {closed}"], cwd=ROOT)
        assert done.returncode == 0
    again = run_process(*RUN, tmp_path / "w")
    assert again.returncode == 0
    assert "acceleration" in again.stdout


@pytest.mark.slow
def test_a_locale_without_letters_and_no_home(tmp_path):
    environment = os.environ | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    environment |= {"PYTHONIOENCODING": "ascii", "HOME": "/dev/null/x"}
    command = [sys.executable, "-X", "warn_default_encoding", "-m", "lljax"]
    for arguments in (("run", "--help"), (*RUN, tmp_path / "w"), ("report", tmp_path / "w")):
        done = subprocess.run(
            [*command, *map(str, arguments)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            encoding="ascii",
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert f"{ROOT / 'lljax'}" not in done.stderr  # no EncodingWarning of ours
    refused = subprocess.run(
        [*command, *RUN, os.fsencode(tmp_path) + "/wörk".encode()],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        encoding="ascii",
    )
    assert refused.returncode == 2
    assert "PYTHONUTF8=1 helps" in refused.stderr


@pytest.mark.slow
def test_a_disk_that_fills_up_is_told_and_the_run_continues(tmp_path):
    """A limit on the size of files stands for a full disk, which needs rights to be made."""
    command = f"{sys.executable} -m lljax {' '.join(map(str, (*RUN, tmp_path / 'w')))}"
    limited = subprocess.run(
        ["sh", "-c", f"ulimit -f 2; exec {command}"], cwd=ROOT, capture_output=True, text=True
    )
    assert limited.returncode == 1
    assert "Traceback" not in limited.stderr
    assert "File too large" in limited.stderr.splitlines()[-1]
    assert "and the same command continues the run" in limited.stderr
    assert len(limited.stderr.splitlines()) <= 10
    assert run_process(*RUN, tmp_path / "w").returncode == 0
