"""Random-access sources of labelled images: ``source[i] -> {'image', 'label', 'index'}``."""

import functools
import pathlib
import threading
from collections.abc import Sequence

import numpy as np

from crate_jax.config import ConfigError, DataConfig, nearest
from crate_jax.data.decode import decode

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
DIGITS_TEST = 0.2
IN_MEMORY_BYTES = 256 * 2**20
SYNTHETIC_SIZES = {"train": 512, "test": 128}

_ARRAYS = {}


class DataMissingError(ConfigError):
    """The data that a config names is not on this machine; its other settings may be right."""


class ArraySource:
    """Images and labels in memory.

    Args:
      images: uint8 ``(N, H, W, C)``.
      labels: integers ``(N,)``.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(labels):
            raise ConfigError(
                f"an array source takes uint8 images (N, H, W, C) and as many labels; got "
                f"{images.dtype} {images.shape} and {len(labels)} labels."
            )
        self.images, self.labels = images, np.asarray(labels, np.int32)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict:
        return {"image": self.images[i], "label": self.labels[i], "index": i, "skipped": 0}


def register_arrays(name: str, **splits: tuple[np.ndarray, np.ndarray]) -> None:
    """Makes arrays of images and labels the source ``array:NAME`` of this process.

    ``register_arrays('mine', train=(x, y), test=(x_test, y_test))``
    """
    _ARRAYS[name] = {split: ArraySource(*arrays) for split, arrays in splits.items()}
    open_source.cache_clear()


class NoisyLabels:
    """A source of which some labels are replaced by uniform draws from all classes.

    The draws are those of MCR^2's released code, numpy's legacy generator included; a draw may hit
    the label that was there.

    Args:
      source: with integer labels.
      fraction: of the records whose label is drawn.
      num_classes: K.
      seed: of the choice and of the draws.
    """

    def __init__(self, source, *, fraction: float, num_classes: int, seed: int):
        self.source = source
        rng = np.random.RandomState(seed)
        count = int(len(source) * fraction)
        chosen = rng.choice(len(source), size=count, replace=False)
        self.drawn = dict(zip(chosen.tolist(), rng.choice(num_classes, size=count), strict=True))

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> dict:
        example = self.source[i]
        label = self.drawn.get(int(example["index"]), example["label"])
        return {**example, "label": np.int32(label)}


class EncodedSource:
    """Images decoded on access; an unreadable one fails, or gives way to the next readable.

    Args:
      records: random access to ``(encoded bytes, label)``.
      channels: 1 or 3.
      on_bad_image: ``fail`` or ``skip``.
      name: of the source, for the error.
    """

    def __init__(self, records, *, channels: int, on_bad_image: str, name: str):
        self.records, self.channels = records, channels
        self.on_bad_image, self.name = on_bad_image, name

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> dict:
        i = int(i)
        for skipped in range(len(self)):
            index = (i + skipped) % len(self)
            encoded, label = self.records[index]
            try:
                image = decode(encoded, self.channels)
            except ValueError as error:
                if self.on_bad_image == "fail":
                    raise ConfigError(
                        f"record {index} of {self.name} is {error}. Repair it, or set "
                        f"config.data.on_bad_image='skip' to take the next one and count it."
                    ) from error
                continue
            return {"image": image, "label": np.int32(label), "index": index, "skipped": skipped}
        raise ConfigError(f"{self.name} holds no readable image.")


class _Folder(Sequence):
    """``PATH/SPLIT/CLASS/FILE``, classes and files in alphabetical order."""

    def __init__(self, root: pathlib.Path):
        if not root.is_dir():
            raise DataMissingError(
                f"there is no folder {root}. Lay images out as PATH/SPLIT/CLASS/FILE and name PATH "
                f"in config.data.source and SPLIT in config.data.train_split and .eval_split."
            )
        classes = sorted(d for d in root.iterdir() if d.is_dir())
        self.files = []
        for label, directory in enumerate(classes):
            files = sorted(f for f in directory.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES)
            if not files:
                raise ConfigError(f"the class folder {directory} holds no images.")
            self.files += [(file, label) for file in files]
        if not self.files:
            raise ConfigError(f"{root} holds no class folders.")
        self.classes = [d.name for d in classes]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[bytes, int]:
        file, label = self.files[i]
        return file.read_bytes(), label


class _Records(Sequence):
    """Bytes and label of a TFDS data source.

    A record read alone costs 250 us on the machine of docs/results.md, in bulk 60. So a split of up
    to ``IN_MEMORY_BYTES`` is read in bulk at the first access and kept, encoded, by each process.
    """

    def __init__(self, source, num_bytes: int):
        self.source, self.kept = source, None
        self.small = num_bytes <= IN_MEMORY_BYTES
        self.lock = threading.Lock()

    def __getstate__(self):
        return {**self.__dict__, "kept": None, "lock": None}

    def __setstate__(self, state):
        self.__dict__.update(state, lock=threading.Lock())

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> tuple[bytes, int]:
        if not self.small:
            return _bytes_and_label(self.source[i])
        with self.lock:
            if self.kept is None:
                self.kept = [
                    _bytes_and_label(record)
                    for start in range(0, len(self), 1024)
                    for record in self.source.__getitems__(
                        range(start, min(start + 1024, len(self)))
                    )
                ]
        return self.kept[i]


def _bytes_and_label(record: dict) -> tuple[bytes, int]:
    return record["image"], record["label"]


@functools.cache
def _digits(split: str) -> ArraySource:
    """scikit-learn's digits; a fixed permutation's first 20 % are the test split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images[..., None] * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    test = round(DIGITS_TEST * len(images))
    chosen = order[:test] if split == "test" else order[test:]
    return ArraySource(images[chosen], bunch.target[chosen])


@functools.cache
def _synthetic(split: str, size: int, channels: int, num_classes: int) -> ArraySource:
    """Noise whose mean tells the class: something to learn, anywhere, without data."""
    n = SYNTHETIC_SIZES[split]
    rng = np.random.default_rng(n)
    labels = rng.integers(num_classes, size=n)
    mean = 32 + 192 * labels / max(num_classes - 1, 1)
    images = mean[:, None, None, None] + rng.normal(0, 25, (n, size, size, channels))
    return ArraySource(np.clip(images, 0, 255).astype(np.uint8), labels)


def tfds_builder(config: DataConfig):
    """The prepared TFDS builder that ``tfds:NAME`` or ``tfds:NAME:VERSION`` names.

    Raises:
      DataMissingError: when there is none of the name, or none is prepared as array_record; the
        sentence has the command that prepares it.
      ConfigError: on a configuration or version that the data set does not have.
    """
    import tensorflow_datasets as tfds

    name = config.source.partition(":")[2]
    try:
        builder = tfds.builder(name, data_dir=config.data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        first = str(error).strip().splitlines()[0]
        unknown = isinstance(error, tfds.core.DatasetNotFoundError)
        Error = DataMissingError if unknown else ConfigError
        raise Error(f"config.data.source={config.source!r}: {first}") from error
    kind = builder.info.file_format
    prepared = builder.data_path.exists() and builder.info.splits
    if not prepared or (kind is not None and kind.value != "array_record"):
        why = "is not prepared" if not prepared else f"is prepared as {kind.value}"
        where = "" if config.data_dir is None else f", data_dir={config.data_dir!r}"
        raise DataMissingError(
            f"the TFDS data set {name!r} {why} under {builder.data_path}. Prepare it with\n"
            f'  python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}{where}, '
            f"file_format='array_record').download_and_prepare()\"\n"
            f"or point config.data.data_dir to a prepared copy."
        )
    return builder


def _tfds_split(config: DataConfig, split: str):
    """The info of a split expression, its files seen to exist."""
    builder = tfds_builder(config)
    try:
        info = builder.info.splits[split]
    except (KeyError, ValueError) as error:
        names = ", ".join(builder.info.splits)
        raise ConfigError(
            f"{config.source} has no split {split!r}; it has: {names}. Set "
            f"config.data.train_split and .eval_split."
        ) from error
    missing = [p.name for p in info.filepaths if not p.exists()]
    if missing:
        raise DataMissingError(
            f"{config.source} under {builder.data_path} is half prepared: {len(missing)} files of "
            f"split {split!r} are missing, {', '.join(missing[:3])} among them. Copy or prepare "
            f"it again."
        )
    return builder, info


def _check_features(config: DataConfig, features) -> None:
    """Raises unless ``image`` is an image and ``label`` a class."""
    import tensorflow_datasets as tfds

    held = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    wanted = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    if not all(isinstance(held.get(name), Feature) for name, Feature in wanted.items()):
        names = ", ".join(f"{name} ({type(held[name]).__name__})" for name in sorted(held))
        raise ConfigError(
            f"{config.source} is not images with a class each: it wants the features image (Image) "
            f"and label (ClassLabel); it has: {names or features}."
        )


def num_examples(config: DataConfig, split: str) -> int:
    """Examples of a split, without reading them."""
    if config.source.startswith("tfds:"):
        return _tfds_split(config, split)[1].num_examples
    return len(open_source(config, split))


@functools.lru_cache(maxsize=4)  # training and evaluation of two configs
def open_source(config: DataConfig, split: str):
    """The source of one split; the last few opened are kept, as they were found then.

    Args:
      config: ``source`` is ``digits``, ``tfds:NAME``, ``folder:PATH``, ``array:NAME`` (see
        :func:`register_arrays`) or ``synthetic``.
      split: ``train`` or ``test``; a TFDS split expression; a sub-folder.

    Raises:
      DataMissingError: a sentence about what is missing and how to get it.
      ConfigError: on an unknown source or split, or data that is not images with a class each.
    """
    kind, _, rest = config.source.partition(":")
    kinds = ("digits", "synthetic", "tfds", "folder", "array")
    if kind not in kinds:
        raise ConfigError(f"config.data.source={config.source!r}{nearest(kind, kinds)}")
    if kind in ("digits", "synthetic"):
        if split not in ("train", "test"):
            raise ConfigError(f"{kind} has the splits train and test; got {split!r}.")
        if kind == "digits":
            return _digits(split)
        return _synthetic(split, config.image_size, config.channels, config.num_classes)
    if kind == "array":
        if split not in _ARRAYS.get(rest, {}):
            raise DataMissingError(
                f"no arrays {rest!r} with split {split!r}; call crate_jax.data.register_arrays."
            )
        return _ARRAYS[rest][split]
    if kind == "folder":
        records = _Folder(pathlib.Path(rest).expanduser() / split)
    else:
        import tensorflow_datasets as tfds

        builder, info = _tfds_split(config, split)
        _check_features(config, builder.info.features)
        skip = {"image": tfds.decode.SkipDecoding()}
        size = sum(path.stat().length for path in info.filepaths)
        records = _Records(builder.as_data_source(split, decoders=skip), size)
    return EncodedSource(
        records, channels=config.channels, on_bad_image=config.on_bad_image, name=config.source
    )
