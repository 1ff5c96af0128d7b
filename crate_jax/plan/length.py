"""How long a recipe is: training examples, from the data, a flag, or a table of known data sets."""

from crate_jax import data
from crate_jax.config import Config

EXAMPLES = {
    "cifar10": 50_000,
    "cifar100": 50_000,
    "imagenet2012": 1_281_167,
    "imagenet21k": 13_150_000,
}
"""Images of the ``train`` split of TFDS data sets; of ImageNet-21k, Winter 2021, to four digits."""


def examples(config: Config, given: int | None) -> tuple[int | None, str]:
    """Size of the training split and where the number is from; None with a request for it."""
    if given is not None:
        return given, "--examples"
    kind, _, name = config.data.source.partition(":")
    if kind == "tfds" and config.data.train_split == "train":
        known = EXAMPLES.get(name.partition(":")[0].partition("/")[0])
        if known:
            return known, f"table of known data sets ({name})"
    try:
        data.validate(config.data)
        return data.num_examples(config.data, config.data.train_split), "the data on this machine"
    except data.DataMissingError:
        return None, (
            f"{config.data.source} is not on this machine and its size is not known: give "
            f"--examples N for the length of the run."
        )
