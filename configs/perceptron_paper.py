"""The paper's linear classification as its text has it.

lljax run configs/perceptron_paper.py
"""

from lljax.experiment.config import OuterConfig, PerceptronConfig, PerceptronData


def get_config() -> PerceptronConfig:
    return PerceptronConfig(
        data=PerceptronData(label_noise=0.0),
        outer=OuterConfig(
            num_steps=500,
            method="projected_gradient",
            learning_rate=0.01,  # on the AUC: the paper's 5e-6 on J = T AUC, T = 2000
            momentum=0.0,
            grow=1.0,
            train_share=0.0,
            patience=None,
        ),
    )
