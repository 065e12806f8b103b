"""What the Tab key completes, asked of a real bash."""

import subprocess

import pytest
from command_line import call


@pytest.fixture(scope="module")
def script():
    done = call("completion", "bash")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lljax r", ["run", "report"]),
        ("lljax run noisy", ["noisy_labels"]),
        ("lljax run perceptron --data.label", ["--data.label-noise"]),
        ("lljax run curate --inner.memory sp", ["spread"]),
        ("lljax export runs/x --k", ["--keep"]),
        ("lljax sweep t", ["transformer_table2"]),
    ],
)
def test_a_command_line_is_completed(script, line, expected):
    words = line.split()
    code = f"""{script}
COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _lljax; printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == expected


def test_another_shell_is_refused():
    done = call("completion", "fish")
    assert done.returncode == 2
    assert "bash or zsh; got fish" in done.stderr
