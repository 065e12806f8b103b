r"""The paper's linear classification as its text has it: no noise, projected gradient, 500 steps.

    lljax run perceptron_paper

Cost: 14 minutes (with other work beside it) on 2 CPU cores, 1.3 GB of memory, 0.3 GB on disk.
Expect: the desired J falls from 325 to 204 nats and its CR rises from 4.3 to 6.8, smoothly, as in
Figure 4. But after some 45 outer steps the policy over-fits the 512 desired examples: on validation
data that step is the best, and its test AR is 1.03, not the paper's 5.50. What helps, still without
noise: exponentiated gradient and a train share (test AR 5.1),

    lljax run perceptron_paper --outer.method exponentiated_gradient \
      --outer.learning-rate 0.1 --outer.momentum 0.8 --outer.grow 1.2 --outer.num-steps 60 \
      --outer.train-share 0.6
"""

from lljax.tasks import OuterConfig
from lljax.tasks.perceptron import PerceptronConfig, PerceptronData


def get_config() -> PerceptronConfig:
    return PerceptronConfig(
        data=PerceptronData(label_noise=0.0),
        outer=OuterConfig(
            num_steps=500,
            method="projected_gradient",
            learning_rate=0.01,  # on the AUC: the paper's 5e-6 on J = T AUC, T = 2000
            momentum=0.0,
            grow=1.0,  # the paper's constant rate; only a step that makes it worse is taken back
            train_share=0.0,
            patience=None,
        ),
    )
