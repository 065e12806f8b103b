"""Values of wrong types and out of range: refused where they are written, with the field's name."""

import dataclasses
import json
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import pytest
from command_line import assert_refused, call

from lljax.errors import UserError
from lljax.field_types import check_fields
from lljax.tasks import ExperimentConfig, InnerConfig, OuterConfig
from lljax.tasks.perceptron import PerceptronConfig, PerceptronData
from lljax.tasks.text import TextData, TransformerModel


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (
            InnerConfig,
            {"num_steps": "60"},
            "num_steps must be a whole number; got '60' (str)",
        ),
        (InnerConfig, {"num_steps": 60.5}, "inner.num_steps must be a whole number; got 60.5"),
        (InnerConfig, {"num_steps": True}, "got True (bool)"),
        (InnerConfig, {"num_steps": None}, "inner.num_steps must be a whole number; got None"),
        (InnerConfig, {"optimizer": "adam"}, "one of 'sgd', 'momentum', 'adamw'; got 'adam'"),
        (InnerConfig, {"learning_rate": 10**400}, "inner.learning_rate must be a number"),
        (InnerConfig, {"clip_norm": "1"}, "inner.clip_norm must be a number or None"),
        (InnerConfig, {"segments": float("nan")}, "inner.segments must be a whole number or None"),
        (OuterConfig, {"momentum": "0.8"}, "outer.momentum must be a number; got '0.8'"),
        (ExperimentConfig, {"outer": None}, "outer must be of type OuterConfig; got None"),
        (ExperimentConfig, {"inner": {"num_steps": 3}}, "(dict); write InnerConfig(...)"),
        (
            ExperimentConfig,
            {"inner": InnerConfig},
            "got the class InnerConfig; write InnerCo",
        ),
        (
            ExperimentConfig,
            {"inner": OuterConfig()},
            "must be of type InnerConfig; got Outer",
        ),
        (ExperimentConfig, {"seed": np.array(3)}, "seed must be a whole number; got array(3)"),
        (ExperimentConfig, {"seed": jnp.array(3)}, "seed must be a whole number; got Array(3"),
        (ExperimentConfig, {"trackers": "wandb"}, "trackers must be a tuple, each entry a text"),
        (ExperimentConfig, {"trackers": (1,)}, "trackers must be a tuple, each entry a text"),
        (PerceptronConfig, {"data": TextData()}, "data must be of type PerceptronData"),
        (PerceptronData, {"dim": "8"}, "data.dim must be a whole number; got '8'"),
        (TextData, {"vocab_size": "many"}, "data.vocab_size must be a whole number"),
        (TextData, {"path": 3}, "data.path must be a text or None; got 3 (int)"),
        (TransformerModel, {"width": 8.0}, "model.width must be a whole number; got 8.0 (float)"),
    ],
)
def test_a_wrong_type_is_refused_with_the_fields_name(kind, values, words):
    with pytest.raises(UserError) as caught:
        kind(**values)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 300


def test_numbers_of_numpy_and_lists_are_written_as_pythons():
    """A config with them is equal to, and recognised as, the same one without."""
    config = ExperimentConfig(
        seed=np.int64(3),
        inner=InnerConfig(num_steps=np.int32(60), learning_rate=np.float32(0.5), clip_norm=1),
        trackers=["tensorboard"],
    )
    same = ExperimentConfig(
        seed=3,
        inner=InnerConfig(num_steps=60, learning_rate=0.5, clip_norm=1.0),
        trackers=("tensorboard",),
    )
    assert json.dumps(dataclasses.asdict(config)) == json.dumps(dataclasses.asdict(same))
    assert hash(config) == hash(same)


@dataclasses.dataclass
class Own:
    pair: tuple[int, float] = (1, 2.0)
    choice: Literal["a", 2] = "a"
    anything: Any = None
    names: list[str] = dataclasses.field(default_factory=list)
    section: InnerConfig | None = None


def test_settings_of_ones_own_are_checked_as_far_as_their_types_say():
    check_fields(Own(pair=[3, 4], choice=2, anything=object(), section=InnerConfig()), "own")
    for values, words in [
        ({"pair": (1, 2.0, 3)}, r"own.pair must be \(a whole number, a number\)"),
        ({"choice": 2.0}, "own.choice must be one of 'a', 2; got 2.0"),
        ({"section": 3}, "own.section must be of type InnerConfig or None; got 3"),
    ]:
        with pytest.raises(UserError, match=words):
            check_fields(Own(**values), "own")


HUGE = "1" + "0" * 13


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--outer.grow", "1e30", ["outer.grow must be in [1, 100]; got 1e+30"]),
        ("--outer.grow", "inf", ["outer.grow"]),
        ("--outer.shrink", "1e-30", ["outer.shrink must be in [0.001, 1)"]),
        ("--outer.learning-rate", "1e300", ["outer.learning_rate", "at most 1,000,000"]),
        ("--outer.learning-rate", "1e-400", ["outer.learning_rate", "> 0"]),
        ("--inner.learning-rate", "1e300", ["inner.learning_rate", "float32"]),
        ("--inner.learning-rate", "1e-300", ["inner.learning_rate", "float32"]),
        ("--inner.learning-rate", "-0", ["inner.learning_rate", "> 0"]),
        ("--inner.clip-norm", "1e300", ["inner.clip_norm", "to 1e18"]),
        ("--inner.memory-budget-gb", "1e300", ["inner.memory_budget_gb"]),
        ("--inner.num-steps", HUGE, ["inner.num_steps must be at most 1,000,000,000"]),
        ("--inner.microbatch-size", HUGE, ["inner.microbatch_size", "at most"]),
        ("--outer.num-steps", HUGE, ["outer.num_steps", "at most"]),
        ("--outer.momentum", "0.9999999", ["outer.momentum must be in [0, 0.9999]"]),
        ("--outer.cutoff", "1e-30", ["outer.cutoff must be 0, or in [1e-9, 1)"]),
        ("--outer.smoothing", "1000000000", ["outer.smoothing", "at most 10,000"]),
        ("--outer.checkpoint-seconds", "nan", ["outer.checkpoint_seconds"]),
        ("--data.label-noise", "1e300", ["data.label_noise must be in [0, 1,000,000]"]),
        ("--data.dim", "100000000", ["the data would take", "GB", "data.dim"]),
        ("--data.num-train", HUGE, ["data.num_train", "at most"]),
        ("--seed", str(2**31), ["seed must be in [0, 2^31)"]),
        ("--seed", "1" + "0" * 30, ["seed must be in [0, 2^31)"]),
    ],
)
def test_extreme_values_are_refused_with_the_flags_name(flag, value, words, tmp_path):
    assert_refused(call("plan", "perceptron", f"{flag}={value}"), *words)


def test_policies_beyond_all_memory_are_reckoned_not_allocated(tmp_path):
    flags = ("--inner.num-steps", "500000000", "--data.dim", "2", "--workdir", tmp_path / "w")
    result = call("run", "perceptron", *flags)
    assert_refused(result, "five policies would take", "500,000,000 inner steps", "Lower inner.num")


def test_a_model_beyond_all_memory_is_refused_before_its_text_is_read():
    flags = ("--model.width", "1000000", "--model.num-heads", "1")
    assert_refused(call("plan", "transformer", *flags), "the model would take", "model.width")
