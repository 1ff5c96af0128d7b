"""Images a second of every stage of the input pipeline, beside what a training step consumes.

    python -m crate_jax.bench input
    python -m crate_jax.bench input --source tfds:imagenet2012 --data-dir D

Without ``--source`` it writes photographs of its own, of ImageNet's common size, into a temporary
folder. The stages take the same photographs on one thread, in turn round after round, and the
median round counts; so whatever else the machine does falls on all alike. What was expected of a
stage comes from counts and from stages that it is made of, with its reason. The pipeline's own rate
is images over CPU seconds, its threads' waits left out. A step's appetite is a chip's peak times an
assumed utilisation over the step's FLOPs an image.
"""

import argparse
import contextlib
import dataclasses
import io
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import cv2
import numpy as np
from absl import flags
from PIL import Image
from rich.console import Console
from rich.table import Table

from crate_jax import config as configs
from crate_jax import data, models
from crate_jax.bench import timing
from crate_jax.bench.appetite import NAMES, STEPS, appetites, flops_an_image, verdicts
from crate_jax.config import ConfigError, DataConfig
from crate_jax.data import sources, transforms
from crate_jax.data.decode import decode
from crate_jax.data.pipeline import TRAIN_THREADS
from crate_jax.data.randaugment import OPERATIONS, TIMM_FILL, TIMM_PROBABILITY, randaugment

PHOTO_SIDES = (375, 500)
PHOTO_QUALITY = 86
PHOTO_NAMES = 64
"""Links to each photograph: Grain's shuffle of a few dozen records costs as much as decoding."""

BATCH = 64
RANDAUGMENT = {"timm": 9.0, "torchvision": 14.0}
LAYERS = 2
"""Magnitudes and operations an image of the fine-tuning recipes."""

TAPS = {"bilinear": 2, "bicubic": 4, "area": 1, "lanczos": 6}
"""Source pixels that an output pixel of each filter reads along an axis, where it enlarges."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """Work on the i-th photograph, and what was expected of it.

    Attributes:
      run: does the work.
      expected: milliseconds an image from those measured of other stages, by name.
      reason: of the expectation.
    """

    run: Callable[[int], object]
    expected: Callable[[dict[str, float]], float] | None = None
    reason: str = ""


def write_photographs(directory: pathlib.Path, count: int) -> None:
    """JPEG files ``train/photo/COPY-N.jpg`` with the spectrum of photographs, amplitude as 1 / f.

    The channels share two thirds of their amplitude, some grain lies over them, and the quality
    gives files of the 108 kB that ImageNet's 138 GB of 1.28 million photographs have on average.
    """
    H, W = PHOTO_SIDES
    folder = directory / "train" / "photo"
    folder.mkdir(parents=True)
    frequency = np.hypot(np.fft.fftfreq(H)[:, None], np.fft.rfftfreq(W)[None])
    frequency[0, 0] = np.inf
    rng = np.random.default_rng(0)
    for i in range(count):
        noise = rng.normal(size=(4, H, W))
        waves = np.fft.irfft2(np.fft.rfft2(noise) / frequency, s=(H, W))
        channels = waves[:3] + waves[3] * 2
        channels = 118 + 55 * channels / channels.std() + 4 * noise[:3]
        image = np.clip(channels, 0, 255).astype(np.uint8).transpose(1, 2, 0)
        _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, PHOTO_QUALITY])
        first = folder / f"00-{i:05d}.jpg"
        first.write_bytes(encoded.tobytes())
        for copy in range(1, PHOTO_NAMES):
            os.link(first, folder / f"{copy:02d}-{i:05d}.jpg")


def make_stages(records: list[bytes], read, config: DataConfig) -> dict[str, Stage]:
    """The stages in the order of the pipeline, each with its input made beforehand.

    Args:
      records: encoded photographs.
      read: i to a record, as the source reads it.
      config: of the pipeline.
    """
    size, area = config.image_size, config.crop_area
    images = [decode(record, 3) for record in records]
    rng = np.random.default_rng(0)
    boxes = [transforms.inception_crop(rng, *image.shape[:2], area) for image in images]
    patches = [
        np.ascontiguousarray(image[top : top + h, left : left + w])
        for image, (top, left, h, w) in zip(images, boxes, strict=True)
    ]
    cropped = [transforms.resize(patch, size, size, config.interpolation) for patch in patches]
    work = {name: _resize_work(patches, size, taps) for name, taps in TAPS.items()}
    buffers = [np.frombuffer(record, np.uint8) for record in records]
    reduced = cv2.IMREAD_REDUCED_COLOR_2 | cv2.IMREAD_IGNORE_ORIENTATION

    def resize_as(name):
        return lambda i: transforms.resize(patches[i], size, size, name)

    def normalise(i):
        """A whole batch at its last image."""
        if (i + 1) % BATCH == 0 or i + 1 == len(cropped):
            transforms.normalise(cropped[i - i % BATCH : i + 1], config)

    stages = {
        "read": Stage(read),
        "decode": Stage(lambda i: decode(records[i], 3)),
        "decode by Pillow": Stage(
            lambda i: np.asarray(Image.open(io.BytesIO(records[i])).convert("RGB")),
            lambda ms: ms["decode"], "the same library",
        ),
        "decode to half size": Stage(
            lambda i: cv2.imdecode(buffers[i], reduced),
            lambda ms: ms["decode"] / 2, "a quarter of the pixels, all of the bits",
        ),
        "crop": Stage(lambda i: transforms.inception_crop(rng, *images[i].shape[:2], area)),
        "resize bilinear": Stage(resize_as("bilinear")),
    } | {
        f"resize {name}": Stage(
            resize_as(name),
            lambda ms, name=name: ms["resize bilinear"] * work[name] / work["bilinear"],
            f"{work[name] / work['bilinear']:.2f} x the multiply-adds",
        )
        for name in ("area", "bicubic", "lanczos")
    } | {
        "resize by OpenCV, aliased": Stage(
            lambda i: cv2.resize(patches[i], (size, size), interpolation=cv2.INTER_LINEAR)
        ),
        "flip": Stage(
            lambda i: cv2.flip(cropped[i], 1),
            lambda ms: ms["normalise into a batch"] * 2 / 5, "2 bytes a value of 5",
        ),
        "normalise into a batch": Stage(normalise),
    }  # fmt: skip
    for kind, magnitude in RANDAUGMENT.items():
        stages[f"RandAugment {kind}"] = _randaugment_stage(cropped, kind, magnitude)
        for name, operation in OPERATIONS[kind].items():
            stages[f"{kind} {name}"] = _operation_stage(cropped, operation, kind, magnitude)
    parts = ["crop", f"resize {config.interpolation}"]
    if config.randaugment_layers:
        parts.append(f"RandAugment {config.randaugment_kind}")
    stages["train transform"] = Stage(
        lambda i: transforms.train_transform(images[i], config, rng),
        lambda ms: sum(ms[part] for part in parts) + ms["flip"] / 2,
        "its parts",
    )
    return stages


def _resize_work(patches, size: int, taps: int) -> float:
    """Multiply-adds a channel of resizing the patches: all rows to the width, then the columns."""
    return sum(
        size * taps * (h * max(1, w / size) + size * max(1, h / size))
        for h, w, _ in (patch.shape for patch in patches)
    )


def _randaugment_stage(images, kind: str, magnitude: float) -> Stage:
    names, rng = list(OPERATIONS[kind]), np.random.default_rng(0)
    drawn = LAYERS * (TIMM_PROBABILITY if kind == "timm" else 1)
    return Stage(
        lambda i: randaugment(images[i], rng, kind=kind, layers=LAYERS, magnitude=magnitude),
        lambda ms: drawn * statistics.mean(ms[f"{kind} {name}"] for name in names),
        f"{drawn:g} x the mean operation",
    )


def _operation_stage(images, operation, kind: str, magnitude: float) -> Stage:
    """One operation as the recipes draw it: timm's alternate between its two filters."""
    filters = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
    level = magnitude / (10 if kind == "timm" else 30)
    return Stage(
        lambda i: operation(
            images[i], level, (1, -1)[i // 2 % 2], TIMM_FILL,
            filters[i % 2] if kind == "timm" else Image.Resampling.NEAREST,
        )
    )  # fmt: skip


def measure_stages(stages: dict[str, Stage], images: int, seconds: float) -> dict[str, float]:
    """Milliseconds an image of each stage: the median of rounds, of which the first warms up."""
    rounds = {name: [] for name in stages}
    end = time.perf_counter() + seconds
    while len(rounds["decode"]) < 2 or time.perf_counter() < end:
        for name, stage in stages.items():
            start = time.perf_counter()
            for i in range(images):
                stage.run(i)
            rounds[name].append(1e3 * (time.perf_counter() - start) / images)
    return {name: statistics.median(times[1:]) for name, times in rounds.items()}


def measure_pipeline(config: DataConfig, seconds: float) -> dict[str, float]:
    """Images a second of the whole pipeline; over CPU seconds where no worker processes help."""
    if not flags.FLAGS.is_parsed():  # worker processes ask
        flags.FLAGS.mark_as_parsed()
    batches = data.train_batches(config, seed=0, batch_size=BATCH)
    for _ in range(4 + 4 * config.workers):  # those read ahead while the workers started
        next(batches)
    images, start, cpu = 0, time.perf_counter(), time.process_time()
    while not images or time.perf_counter() - start < seconds:
        images += len(next(batches)["label"])
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    batches.close()
    rate = {"images_per_s": images / wall}
    return rate if config.workers else rate | {"images_per_cpu_s": images / cpu}


@contextlib.contextmanager
def _data_config(args) -> Iterator[DataConfig]:
    """The pipeline's config: of the source that is named, or of photographs written here."""
    settings = {
        "num_classes": 1000, "image_size": args.size, "channels": 3, "train_split": args.split,
        "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "crop": "inception",
        "interpolation": args.interpolation, "flip": True,
    }  # fmt: skip
    if args.randaugment:
        settings |= {
            "randaugment_layers": LAYERS, "randaugment_kind": args.randaugment,
            "randaugment_magnitude": RANDAUGMENT[args.randaugment],
        }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        if args.source:
            settings |= {"source": args.source, "data_dir": args.data_dir}
        else:
            write_photographs(pathlib.Path(folder), args.photos)
            settings |= {"source": f"folder:{folder}", "train_split": "train"}
        raw = configs.default()
        raw.data.update(settings)
        raw.train.update(steps=1)
        yield configs.resolve(raw).data


def _check(args) -> None:
    """What can be found wrong without data."""
    for name, value, least in (("photos", args.photos, 1), ("size", args.size, 1)):
        if value < least:
            raise ConfigError(f"--{name} must be at least {least}; got {value}.")
    if args.seconds < 0:
        raise ConfigError(f"--seconds must be at least 0; got {args.seconds:g}.")
    if min(args.workers) < 0:
        raise ConfigError(f"--workers must be at least 0; got {min(args.workers)}.")
    if not 0 < args.mfu <= 1:
        raise ConfigError(f"--mfu is a share of the peak, above 0 and up to 1; got {args.mfu:g}.")
    if args.data_dir and not args.source:
        raise ConfigError("--data-dir wants --source=tfds:NAME to look for under it.")
    if (args.model is None) != (args.variant is None):
        raise ConfigError("--model and --variant name one step together; give both or neither.")


def run(args) -> dict:
    """Everything that is measured and computed, as ``--json`` writes it."""
    _check(args)
    steps = STEPS if args.model is None else ((args.model, args.variant),)
    flops = {
        f"{model} {variant}": flops_an_image(model, variant, args.size) for model, variant in steps
    }
    with _data_config(args) as config:
        source = data.open_source(config, config.train_split)
        if not isinstance(source, sources.EncodedSource):
            raise ConfigError(
                f"--source={config.source!r} has nothing to decode; give tfds:NAME or folder:PATH."
            )
        count = min(args.photos, len(source))
        records = [source.records[i][0] for i in range(count)]
        stages = make_stages(records, lambda i: source.records[i], config)
        ms = measure_stages(stages, count, args.seconds)
        pipeline = {
            str(workers): measure_pipeline(
                dataclasses.replace(config, workers=workers), args.seconds / 4
            )
            for workers in sorted({0, *args.workers})
        }
        pixels = statistics.mean(decode(record, 1).size for record in records)
    rate = pipeline["0"]["images_per_cpu_s"]
    parts = sum(
        ms[name] for name in ("read", "decode", "train transform", "normalise into a batch")
    )
    return {
        "photographs": {
            "count": count, "bytes": statistics.mean(map(len, records)), "pixels": pixels,
        },
        "stages": {
            name: {
                "ms": ms[name],
                "images_per_s": 1e3 / ms[name],
                "expected_ms": stage.expected(ms) if stage.expected else None,
                "reason": stage.reason,
            }
            for name, stage in stages.items()
        },
        "pipeline": pipeline,
        "pipeline_expected": {
            workers: 1e3 / parts * min(TRAIN_THREADS * max(1, int(workers)), os.cpu_count())
            for workers in pipeline
        },
        "appetite": appetites(flops, args.mfu, rate),
        "mfu": args.mfu,
    }  # fmt: skip


def _table(title: str, *columns: str) -> Table:
    table = Table(*columns, title=title, box=None)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def show(found: dict, console: Console) -> None:
    """Prints the tables and the verdict."""
    photos = found["photographs"]
    title = (
        f"{photos['count']} photographs of {photos['bytes'] / 1e3:.0f} kB and "
        f"{photos['pixels'] / 1e3:.0f} thousand pixels, one thread, OpenCV {cv2.__version__}"
    )
    table = _table(title, "stage", "images/s", "ms", "expected ms", "because of")
    operations = [f"{kind} {name}" for kind in RANDAUGMENT for name in OPERATIONS[kind]]
    for name, row in found["stages"].items():
        if name not in operations:
            expected = "" if row["expected_ms"] is None else f"{row['expected_ms']:.3f}"
            table.add_row(
                name, f"{row['images_per_s']:,.0f}", f"{row['ms']:.3f}", expected, row["reason"]
            )
    console.print(table)

    table = _table("RandAugment's operations, ms an image", "operation", *RANDAUGMENT)
    for name in dict.fromkeys(name for kind in RANDAUGMENT for name in OPERATIONS[kind]):
        rows = (found["stages"].get(f"{kind} {name}") for kind in RANDAUGMENT)
        table.add_row(name, *("" if row is None else f"{row['ms']:.3f}" for row in rows))
    console.print(table)

    table = _table(
        "the whole pipeline", "workers", "images/s", "images a CPU second", "expected images/s"
    )
    for workers, row in found["pipeline"].items():
        table.add_row(
            workers, f"{row['images_per_s']:,.0f}",
            f"{row['images_per_cpu_s']:,.0f}" if "images_per_cpu_s" in row else "",
            f"{found['pipeline_expected'][workers]:,.0f}",
        )  # fmt: skip
    console.print(table)

    title = f"images/s a chip at {100 * found['mfu']:g} % of its peak / cores to feed it"
    table = _table(title, "step", "GFLOP an image", *NAMES)
    for step, row in found["appetite"].items():
        cells = (f"{row[c]['images_per_s']:,.0f} / {row[c]['cores']:.1f}" for c in NAMES)
        table.add_row(step, f"{row['flops'] / 1e9:.1f}", *cells)
    console.print(table)
    for sentence in verdicts(found["appetite"]):
        console.print(sentence)


def main(argv=None) -> int:
    """The command line; returns the exit code, 2 with a sentence on what does not fit."""
    parser = argparse.ArgumentParser(prog="python -m crate_jax.bench input", description=__doc__)
    parser.add_argument("--source", help="tfds:NAME or folder:PATH; none writes photographs")
    parser.add_argument("--data-dir", help="root of the TFDS files")
    parser.add_argument("--split", default="train")
    parser.add_argument("--photos", type=int, default=BATCH, help="photographs of a round")
    parser.add_argument("--size", type=int, default=224, help="image side in pixels")
    parser.add_argument("--interpolation", default="bilinear", choices=transforms.FILTERS)
    parser.add_argument("--randaugment", choices=RANDAUGMENT, help="in the pipeline, two deep")
    parser.add_argument("--model", choices=models.MODELS, help="with --variant: of the step")
    parser.add_argument("--variant", help="such as L/14")
    parser.add_argument("--mfu", type=float, default=0.5, help="that the step is assumed to reach")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=24.0, help="to measure the stages for")
    parser.add_argument("--json", help="also write what is found to this file")
    args = parser.parse_args(argv)
    try:
        found = run(args)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    show(found, timing.wide_console(120))
    timing.write(args.json, found)
    return 0
