"""Batches as a function of (seed, step), through Grain.

Training position p (a row of a step, counted over the run) is record ``shuffle_e(p mod n)`` of
epoch ``e = p div n``, augmented by a generator seeded by p. With m views it is view ``p mod m`` of
record ``p div m``, and view 0 is the image as evaluation sees it. Hosts take some rows of each
global batch, workers whole batches; neither changes what a position holds.
"""

import functools
import sys
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from crate_jax.config import ConfigError, DataConfig, nearest
from crate_jax.data import randaugment, sources, transforms
from crate_jax.data.sources import num_examples, open_source
from crate_jax.data.workers import begin

__all__ = ["eval_batches", "num_examples", "train_batches", "validate"]

TRAIN_THREADS = 2  # of each worker
NAMES_LISTED = 10

_WORDS = {
    "crop": transforms.CROPS,
    "interpolation": transforms.FILTERS,
    "eval_interpolation": transforms.FILTERS,
    "eval_resize": transforms.EVAL_RESIZES,
    "randaugment_kind": randaugment.KINDS,
    "on_bad_image": ("fail", "skip"),
}


def validate(config: DataConfig, splits: Sequence[str] | None = None) -> None:
    """Raises a sentence about the first thing wrong, with the settings before the data.

    Args:
      config: to look at.
      splits: those to open; None means the training and the evaluation split.

    Raises:
      ConfigError: before anything is decoded beyond the first image of each split; a
        DataMissingError where a split is not there.
    """
    _validate_settings(config)
    splits = (config.train_split, config.eval_split) if splits is None else splits
    opened = {split: open_source(config, split) for split in splits}
    if config.source.startswith("folder:"):
        _validate_classes(config, {s: source.records.classes for s, source in opened.items()})
    for split, source in opened.items():
        _validate_split(config, split, source)


def _validate_settings(config: DataConfig) -> None:
    """What can be found wrong without data."""
    for field, words in _WORDS.items():
        value = getattr(config, field)
        if value not in words:
            raise ConfigError(f"config.data.{field}={value!r}{nearest(value, words)}")
    if config.channels not in (1, 3):
        raise ConfigError(f"config.data.channels must be 1 or 3; got {config.channels}.")
    if config.eval_resize == "shorter" and config.eval_resize_size < config.image_size:
        raise ConfigError(
            f"config.data.eval_resize_size={config.eval_resize_size} is smaller than "
            f"config.data.image_size={config.image_size}, which is cropped from it."
        )
    if config.randaugment_layers and config.channels != 3:
        raise ConfigError("RandAugment wants colour images; set config.data.randaugment_layers=0.")
    if config.jitter[3] > 0.5:
        raise ConfigError(
            f"config.data.jitter turns the hue by up to {config.jitter[3]} of a turn; at most 0.5."
        )
    if (any(config.jitter) or config.grayscale) and config.channels != 3:
        raise ConfigError(
            "jitter and grayscale want colour images; set config.data.jitter to zeros and "
            "config.data.grayscale=0."
        )


def _validate_classes(config: DataConfig, classes: dict[str, list[str]]) -> None:
    """A class folder's place among its split's is its label, so the splits must have the same."""
    everywhere = set.intersection(*map(set, classes.values())) if classes else set()
    extra = {split: [c for c in names if c not in everywhere] for split, names in classes.items()}
    if any(extra.values()):
        lines = "\n  ".join(f"{split}: {_listed(names)}" for split, names in extra.items() if names)
        raise ConfigError(
            f"the splits of {config.source} have different class folders, and labels number the "
            f"folders of a split. Give every split the same; not in all of them are\n  {lines}"
        )


def _listed(names: list[str]) -> str:
    more = len(names) - NAMES_LISTED
    return ", ".join(names[:NAMES_LISTED]) + (f" and {more} more" if more > 0 else "")


def _validate_split(config: DataConfig, split: str, source) -> None:
    if len(source) == 0:
        raise ConfigError(f"split {split!r} of {config.source} is empty.")
    channels = source[0]["image"].shape[-1]
    if channels != config.channels:
        raise ConfigError(
            f"{config.source} has {channels} channels; set config.data.channels={channels}."
        )
    height, width, _ = source[0]["image"].shape
    if config.eval_resize == "pad" and max(height, width) > config.image_size:
        raise ConfigError(
            f"config.data.eval_resize='pad' makes no image smaller, and {config.source} has "
            f"{height}x{width} pixels; raise config.data.image_size={config.image_size}."
        )
    if config.crop == "pad_to" and min(height, width) + 2 * config.crop_padding < config.image_size:
        raise ConfigError(
            f"config.data.image_size={config.image_size} is larger than a padded image of "
            f"{config.source}; raise config.data.crop_padding={config.crop_padding}."
        )
    known = _known_classes(config, source)
    if known is not None and known > config.num_classes:
        raise ConfigError(
            f"{config.source} has {known} classes; config.data.num_classes={config.num_classes}."
        )


def _known_classes(config: DataConfig, source) -> int | None:
    if isinstance(source, sources.ArraySource):
        return int(source.labels.max()) + 1
    if config.source.startswith("folder:"):
        return len(source.records.classes)
    return sources.tfds_builder(config).info.features["label"].num_classes


class _Rows(grain.MapDataset):
    """Some rows of every global batch of a dataset of positions."""

    def __init__(self, parent, *, batch_size: int, rows: Sequence[int]):
        super().__init__(parent)
        self._batch_size, self._rows = batch_size, tuple(map(int, rows))

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * len(self._rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        step, row = divmod(index, len(self._rows))
        return self._parent[step * self._batch_size + self._rows[row]]


class _Views(grain.MapDataset):
    """Every example of a dataset several times in a row, with the number of its ``view``."""

    def __init__(self, parent, *, views: int):
        super().__init__(parent)
        self._views = views

    def __len__(self) -> int:
        return min(len(self._parent) * self._views, sys.maxsize)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        record, view = divmod(index, self._views)
        return {**self._parent[record], "view": view}


class _TrainTransform(grain.transforms.RandomMap):
    """``train_transform`` of an example, by the generator of its position."""

    def __init__(self, config: DataConfig):
        self._config = config

    def random_map(self, example: dict, rng: np.random.Generator) -> dict:
        if example.get("view") == 0 and self._config.views > 1:
            image = transforms.eval_transform(example["image"], self._config)
        else:
            image = transforms.train_transform(example["image"], self._config, rng)
        return {**example, "image": image}


class _EvalPositions:
    """The source in order, then its last record again, to a whole number of batches.

    ``mask`` is 0 on these repetitions and where a neighbour stands for an unreadable image, which
    ``skipped`` counts as one.
    """

    def __init__(self, source, config: DataConfig, batch_size: int):
        self._source, self._config, self._batch_size = source, config, batch_size

    def __len__(self) -> int:
        return -(-len(self._source) // self._batch_size) * self._batch_size

    def __getitem__(self, i: int) -> dict:
        example = self._source[min(i, len(self._source) - 1)]
        image = transforms.eval_transform(example["image"], self._config)
        own, unreadable = i < len(self._source), example["skipped"] > 0
        return {
            **example,
            "image": image,
            "mask": np.float32(own and not unreadable),
            "skipped": int(own and unreadable),
        }


def _stack(examples: list[dict], config: DataConfig) -> dict[str, np.ndarray]:
    return {
        "image": transforms.normalise([e["image"] for e in examples], config),
        "label": np.array([e["label"] for e in examples], np.int32),
        "index": np.array([e["index"] for e in examples], np.int64),
        "skipped": np.int32(sum(e["skipped"] for e in examples)),
        **({"mask": np.stack([e["mask"] for e in examples])} if "mask" in examples[0] else {}),
    }


def _batches(config: DataConfig, dataset, batch_size: int, rows: Sequence[int] | None):
    """The batches of a dataset of positions, or some rows of each."""
    rows = range(batch_size) if rows is None else rows
    return _Rows(dataset, batch_size=batch_size, rows=rows).batch(
        len(rows), batch_fn=functools.partial(_stack, config=config)
    )


def _open(config: DataConfig, split: str):
    """The source of a split, with noisy labels where these are asked for in training."""
    source = open_source(config, split)
    if not config.label_noise or split != config.train_split:
        return source
    return sources.NoisyLabels(
        source, fraction=config.label_noise, num_classes=config.num_classes,
        seed=config.label_noise_seed,
    )  # fmt: skip


def _iterate(batches, *, threads: int, workers: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches read ahead by the threads of this process, or of each of ``workers`` others."""
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(4, threads))
    iterator = batches.to_iter_dataset(options)
    if workers:
        processes = grain.MultiprocessingOptions(num_workers=workers)
        iterator = iterator.mp_prefetch(processes, worker_init_fn=begin)
    return iter(iterator)


def train_batches(
    config: DataConfig,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    rows: Sequence[int] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless training batches from ``start_step`` on, or some rows of each.

    Args:
      config: source, transforms and workers.
      seed: of shuffling and augmentation.
      batch_size: over all hosts.
      start_step: step of the first batch; nothing before it is read.
      rows: of each global batch, those wanted; None means all.

    Yields:
      ``image`` float32 (b,H,W,C), ``label`` int32 (b,), ``index`` int64 (b,), the records' places
      in the source, and ``skipped``, unreadable images replaced.
    """
    records = grain.MapDataset.source(_open(config, config.train_split)).seed(seed)
    records = (records.shuffle() if config.shuffle else records).repeat()
    if config.views > 1:
        records = _Views(records, views=config.views)
    positions = records.random_map(_TrainTransform(config))
    batches = _batches(config, positions, batch_size, rows)
    return _iterate(batches[start_step:], threads=TRAIN_THREADS, workers=config.workers)


def eval_batches(
    config: DataConfig,
    *,
    batch_size: int,
    rows: Sequence[int] | None = None,
    split: str | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """A split once, in order and without augmentation, or some rows of each batch.

    ``split`` is that of evaluation unless it is named; the training split's labels are noisy here
    too, where they are noisy. ``mask`` is 0 on the padding of the last batch, and in the place of
    an unreadable image where ``config.on_bad_image`` is ``skip``; ``skipped`` counts the latter.
    """
    source = _open(config, split or config.eval_split)
    positions = grain.MapDataset.source(_EvalPositions(source, config, batch_size))
    batches = _batches(config, positions, batch_size, rows)
    # Threads for workers: processes would be spawned anew, seconds long, at every evaluation.
    return _iterate(batches, threads=max(2, config.workers), workers=0)
