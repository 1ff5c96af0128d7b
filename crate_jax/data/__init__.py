"""Images by (seed, step): the same batches for any number of loader workers and hosts."""

from crate_jax.data.pipeline import eval_batches, num_examples, train_batches, validate
from crate_jax.data.sources import ArraySource, DataMissingError, open_source, register_arrays

__all__ = [
    "ArraySource",
    "DataMissingError",
    "eval_batches",
    "num_examples",
    "open_source",
    "register_arrays",
    "train_batches",
    "validate",
]
