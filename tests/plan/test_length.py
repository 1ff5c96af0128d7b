import dataclasses

import pytest

from crate_jax import config as configs
from crate_jax.plan.length import examples


@pytest.mark.parametrize(
    "source, split, given, count, where",
    [
        ("tfds:imagenet2012", "train", None, 1_281_167, "known data sets"),
        ("tfds:imagenet2012:5.1.0", "train", None, 1_281_167, "known data sets"),
        ("tfds:imagenet2012", "train", 7, 7, "--examples"),
        ("tfds:imagenet2012", "train[:50%]", None, None, "give --examples N"),
        ("folder:/nowhere", "train", None, None, "give --examples N"),
        ("digits", "train", None, 1438, "on this machine"),
    ],
)
def test_where_the_length_of_a_run_is_from(source, split, given, count, where):
    config = configs.Config()
    data = dataclasses.replace(config.data, source=source, train_split=split)
    found, told = examples(dataclasses.replace(config, data=data), given)
    assert found == count and where in told
