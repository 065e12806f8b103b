"""The examples do what they say, as a user would run them."""

import importlib
from pathlib import Path

import pytest
from command_line import settings_of_a_user

EXAMPLES = Path(__file__).parent.parent / "examples"
pytestmark = pytest.mark.slow


@pytest.fixture
def run(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)

    def main(name):
        with settings_of_a_user():
            return importlib.import_module(name).main()

    return main


def test_a_learned_schedule_is_better_than_the_best_constant_rate(run):
    before, after = run("learned_schedule")
    assert after < 0.9 * before


def test_twenty_learned_points_teach_more_than_twenty_real_ones(run):
    before, after = run("distillation")
    assert after > before + 0.05


def test_one_weight_an_example_finds_the_wrong_labels(run):
    share, learned, oracle = run("label_weights")
    assert share < 0.1
    assert learned > 0.6 * oracle > 3


def test_a_frozen_base_is_stored_once(run):
    share, megabytes = run("lora")
    assert share < 0.42
    assert megabytes < 8


def test_losses_alone_tell_which_examples_count(run):
    before, after = run("meta_weight_net")
    assert after < 0.95 * before


def test_better_weights_save_bytes(run):
    sizes = run("compress")
    for length, by_auc in sizes.values():
        assert abs(length - 49 - by_auc) < 1e-3 * by_auc + 8
    assert sizes["optimised"][0] < 0.97 * sizes["conventional"][0]
