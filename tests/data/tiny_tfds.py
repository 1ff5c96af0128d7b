"""TFDS data sets of twelve small colour images, prepared on the spot without TensorFlow."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


def png(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, "png")
    return out.getvalue()


class TinyImages(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    IMAGE, LABEL = "image", tfds.features.ClassLabel(num_classes=3)

    def _info(self):
        features = {
            self.IMAGE: tfds.features.Image(shape=(8, 8, 3)),
            "label": self.LABEL,
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(8), "test": self._generate_examples(4)}

    def _generate_examples(self, n):
        for i in range(n):
            yield (
                i,
                {self.IMAGE: io.BytesIO(png(np.full((8, 8, 3), 10 * i, np.uint8))), "label": i % 3},
            )


class TinyImageless(TinyImages):
    IMAGE = "pixels"


class TinyUnlabelled(TinyImages):
    LABEL = tfds.features.Scalar(np.int64)


def prepare(data_dir, Builder=TinyImages):
    builder = Builder(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return builder
