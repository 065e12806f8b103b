"""A small Transformer language model on real English, in minutes on two CPU cores.

    lljax run transformer_small
    lljax run transformer_small --workdir runs/stories --data.path stories.txt

One layer of width 32, N = 512 sequences of 24 tokens of the manual that ships with Python, half of
them perturbed, K = 384, T = 120 steps of gradient descent.

Cost: 5 minutes on two cores, most of it seven meta-gradients of 1 TFLOP each.
Expect: an acceleration ratio of 3.0 on test data, and 15 % of the weight on the perturbed half. On
TinyStories, seeds 0 to 2: 3.1, 2.7, 2.9, and 10 to 13 %.
"""

from lljax.tasks import InnerConfig, OuterConfig
from lljax.tasks.text import TextData, TransformerConfig, TransformerModel


def get_config() -> TransformerConfig:
    return TransformerConfig(
        inner=InnerConfig(num_steps=120, learning_rate=1.0, microbatch_size=128),
        outer=OuterConfig(num_steps=6, learning_rate=0.3, momentum=0.5, grow=1.1, train_share=0.0),
        model=TransformerModel(width=32, num_layers=1, num_heads=4, initialization="torch"),
        data=TextData(
            vocab_size=256,
            context=24,
            num_train=512,
            num_desired=384,
            num_validation=128,
            num_test=512,
            perturbations=40,
        ),
    )
