"""The paper's language model at full size, on TinyStories.

    lljax plan transformer       what it will need on this machine
    lljax run transformer

1.7 M parameters, N = 16,384 sequences of 64 tokens (half of them perturbed), K = 512, T = 4000
steps of gradient descent at eta = 0.1, as in the paper; attention scale and initialisation are the
public code's. The text is the validation file of TinyStories (22 MB, downloaded once);
`--data.path stories.txt` takes any other.

Differs from the paper: the policy is optimised by exponentiated gradient with momentum, a
validation set chooses the best outer step, and the vocabulary of 5,000 tokens is trained on
the text (`--data.tokenizer tokenizer.model` cuts a given one to its 5,000 most frequent tokens).

Cost: about 30 TFLOP an inner step of a meta-gradient, 2 EFLOP in all. Ask `lljax plan`.
Expect: the paper has an acceleration ratio of 2.41 on test data. Not run at full size by us yet.
"""

from lljax.tasks import InnerConfig, OuterConfig
from lljax.tasks.text import TextData, TransformerConfig, TransformerModel

TINY_STORIES = (
    "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/"
    "TinyStoriesV2-GPT4-valid.txt"
)


def get_config() -> TransformerConfig:
    return TransformerConfig(
        inner=InnerConfig(num_steps=4000, learning_rate=0.1, microbatch_size=256),
        outer=OuterConfig(num_steps=15, learning_rate=0.2, momentum=0.5, train_share=0.0),
        model=TransformerModel(attention_scale="width", initialization="torch"),
        data=TextData(path=TINY_STORIES, vocab_size=5000, context=64),
    )
