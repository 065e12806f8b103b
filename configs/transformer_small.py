"""A small Transformer on Python's own manual."""

from lljax.experiment.config import (
    InnerConfig,
    OuterConfig,
    TextData,
    TransformerConfig,
    TransformerModel,
)


def get_config() -> TransformerConfig:
    return TransformerConfig(
        inner=InnerConfig(num_steps=100, learning_rate=0.5, microbatch_size=64),
        outer=OuterConfig(num_steps=6, learning_rate=0.4, momentum=0.0, train_share=0.0),
        model=TransformerModel(width=64, num_heads=4),
        data=TextData(
            vocab_size=512,
            context=32,
            num_train=256,
            num_desired=128,
            num_validation=256,
            num_test=256,
        ),
    )
