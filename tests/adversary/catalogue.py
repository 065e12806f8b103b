"""A data set as the TensorFlow Datasets catalogue has them, made on this machine."""

import tensorflow_datasets as tfds
from texts import DOCUMENTS

NAME = "stories_for_an_adversary"


class StoriesForAnAdversary(tfds.core.GeneratorBasedBuilder):
    """A few hundred short documents."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield from ((index, {"text": text}) for index, text in enumerate(DOCUMENTS))
