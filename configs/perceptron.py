"""The paper's linear classification at full size, with noisy training labels.

lljax run configs/perceptron.py
"""

from lljax.experiment.config import PerceptronConfig


def get_config() -> PerceptronConfig:
    return PerceptronConfig()
