"""The inspection from its settings to its files."""

import json
import pathlib

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from crate_jax import data
from crate_jax import run as trainer
from crate_jax.config import as_dict, resolve
from crate_jax.evaluate import nearest_subspace, principal_components
from crate_jax.interpret import subspaces
from crate_jax.interpret.page import Picture, Table, write_page
from crate_jax.interpret.summary import facts
from crate_jax.recipe_ctrl import digits
from crate_jax.studies.transcription import figures, noise
from crate_jax.studies.transcription.loop import Loop, Seen, elsewhere
from crate_jax.studies.transcription.settings import DIGITS, Settings, words
from crate_jax.train import whole

UNKNOWN = "-"
"""What a published number is shown as that was not at hand."""

ALL = "all"
"""The class of images that have none."""


def run(settings: Settings, workdir: pathlib.Path, console: Console) -> int:
    """Looks at the run and writes the report; see the package.

    Raises:
      ConfigError: where the run, its checkpoint or its data is not there.
    """
    where = pathlib.Path(settings.run)
    if settings.run == DIGITS:
        where = workdir / "trained"
        code = trainer.train(resolve(digits(settings.digits_steps)), where, console).exit_code
        if code:
            return code
    loop = Loop(settings, where)
    rng = np.random.default_rng(settings.seed)
    others = {source: elsewhere(loop.config, source) for source in words(settings.transfer)}
    for other in others.values():
        data.validate(other.data, splits=(other.data.eval_split,))
    with console.status("transcribing ..."):
        train = loop.see(loop.config.data.train_split, settings.train_images)
        test = loop.see(loop.config.data.eval_split, settings.test_images)
        unseen = {
            source: loop.see(other.data.eval_split, settings.test_images, other)
            for source, other in others.items()
        }
    classes = _classes(train.labels, loop.config.data.num_classes)
    known = len(classes) > 1
    spaces = None
    if known:
        spaces = nearest_subspace.fit(
            train.Z, train.labels, loop.config.data.num_classes, components=settings.components,
            centered=False,
        )  # fmt: skip
    noisy = {}
    if settings.noisy_images:
        noisy = _noise(loop, settings, test, spaces, console)
    if jax.process_index() != 0:
        return 0
    workdir.mkdir(parents=True, exist_ok=True)
    numbers = _numbers(loop, train, test, unseen, spaces)
    components = {
        name: principal_components.fit(train.Z[members], settings.spectrum)
        for name, members in classes.items()
    }
    pictures = _draw(loop, settings, workdir, test, unseen, components, rng)
    if noisy and loop.sparse:
        score = noise.ACCURACY if known else noise.PSNR
        figures.sweeps(workdir / "noise.png", noisy, score)
        pictures.append(Picture("Noise", workdir / "noise.png", _NOISE))
    results = {
        "settings": as_dict(settings), "step": loop.step, "numbers": numbers, "noise": noisy,
        "noise_fits": noise.fits(noisy),
        "spectra": {name: c.deviations.tolist() for name, c in components.items()},
    }  # fmt: skip
    whole.write_text(workdir / "results.json", json.dumps(results, indent=1) + "\n")
    parts = [_INTRODUCTION, *_tables(loop, numbers, noisy, known), *pictures]
    write_page(workdir / "index.html", f"Transcription of {loop.config.data.source}", parts)
    shown = {key: _text(value) for key, value in numbers["test"].items()}
    console.print(facts(**shown, step=str(loop.step), page=str(workdir / "index.html")))
    return 0


def _classes(labels: np.ndarray, num_classes: int) -> dict[str, np.ndarray]:
    """Members of each class that there is, or of all together where there are fewer than two."""
    members = {str(k): np.flatnonzero(labels == k) for k in range(num_classes)}
    members = {name: which for name, which in members.items() if len(which) > 1}
    return members if len(members) > 1 else {ALL: np.arange(len(labels))}


def _noise(loop: Loop, settings: Settings, test: Seen, spaces, console: Console) -> dict:
    total = sum(len(noise.levels(kind, settings.levels)) for kind in words(settings.noises))
    columns = TextColumn("noise"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("noise", total=total)
        return noise.measure(loop, settings, test, spaces, lambda: progress.advance(task))


def _numbers(loop: Loop, train: Seen, test: Seen, unseen: dict[str, Seen], spaces) -> dict:
    """Every number of the tables."""
    mine = test.means()
    if spaces is not None:
        K = loop.config.data.num_classes
        for name, Z in (("nearest_subspace", test.Z), ("nearest_subspace_returned", test.Zhat)):
            guess = nearest_subspace.residuals(Z, spaces).argmin(axis=1)
            mine[name] = float(np.mean(guess == test.labels))
        some = slice(0, 2000)
        mine["largest_cosine_between_classes"] = subspaces.max_cosine_between(
            test.Z[some], test.labels[some], K
        )
    return {
        "train": train.means(), "test": mine,
        "unseen": {source: seen.means() for source, seen in unseen.items()},
        "nonzero": loop.nonzero(2 * test.images - 1),
    }  # fmt: skip


def _draw(loop, settings, workdir, test, unseen, components, rng) -> list[Picture]:
    """All figures but that of the noise; the pictures in the order of the page."""
    paths = {name: workdir / f"{name}.png" for name in _CAPTIONS}
    source = loop.config.data.source
    figures.reconstructions(
        paths["reconstructions"], test, settings.shown, f"Test images of {source}"
    )
    figures.quality(paths["quality"], test)
    figures.heat_map(paths["heat_map"], test)
    figures.spectra(paths["spectra"], {name: c.deviations for name, c in components.items()})
    rows, labels = [], []
    along = settings.walks if len(components) == 1 else 1
    for name, c in components.items():
        for index in range(min(along, len(c.deviations))):
            walk = principal_components.walk(c, index, settings.reach, settings.shown)
            rows.append(loop.decode(walk))
            labels.append(f"{name}: {index + 1}")
    reach = f"from -{settings.reach:g} to {settings.reach:g} standard deviations"
    figures.grid(paths["walks"], rows, labels, "Walks along the first principal component", reach)
    samples = [
        loop.decode(principal_components.sample(c, settings.shown, rng))
        for c in components.values()
    ]
    figures.grid(
        paths["samples"], samples, list(components), "Decoded samples of a Gaussian a class",
        "mean and principal components of the training features",
    )  # fmt: skip
    pictures = [Picture(title, paths[name], note) for name, (title, note) in _CAPTIONS.items()]
    for i, (name, seen) in enumerate(unseen.items()):
        path = workdir / f"unseen_{i}.png"
        figures.reconstructions(path, seen, settings.shown, f"{name}, never seen in training")
        pictures.append(Picture(f"Unseen data: {name}", path, _UNSEEN))
    return pictures


def _tables(loop: Loop, numbers: dict, noisy: dict, known: bool) -> list[Table]:
    sets = {"training images": numbers["train"], "test images": numbers["test"]}
    sets |= numbers["unseen"]
    rows = [
        (name, *(_text(row[key]) for key in ("images", "psnr", "ssim", "cosine")))
        for name, row in sets.items()
    ]
    tables = [
        Table("What comes back", ("", "images", "PSNR (dB)", "SSIM", "cosine"), rows, _QUALITY)
    ]
    published = [
        (name, UNKNOWN, ours)
        for name, ours in (
            ("PSNR (dB)", _text(numbers["test"]["psnr"])), ("SSIM", _text(numbers["test"]["ssim"])),
            ("FID, inception score", UNKNOWN),
        )
    ]  # fmt: skip
    tables.append(Table("Beside CSC-CTRL", ("", "published", "ours"), published, _PUBLISHED))
    if known:
        keys = [key for key in numbers["test"] if "subspace" in key or "classes" in key]
        tables.append(
            Table(
                "Classes", ("", "test"),
                [(key.replace("_", " "), _text(numbers["test"][key])) for key in keys], _CLASSES,
            )
        )  # fmt: skip
    if numbers["nonzero"]:
        stages = [(str(i), _text(value)) for i, value in enumerate(numbers["nonzero"], start=1)]
        tables.append(Table("Non-zero codes", ("stage", "fraction"), stages))
    rows = [
        (kind, f"{row['level']:g}", _text(row["best_score"]), _text(row["best_lambda"]),
         _text(row["error_at_best"]))
        for kind, levels in noisy.items()
        for row in levels
    ]  # fmt: skip
    if rows:
        score = noise.ACCURACY if known else noise.PSNR
        columns = ("noise", "level", f"best {score}", "best lambda", "first-stage error")
        tables.append(Table("Noise", columns, rows, "" if loop.sparse else _NO_LAMBDA))
    return tables


def _text(value) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


_INTRODUCTION = (
    "An encoder f and a decoder g trained against each other: an image X becomes features "
    "Z = f(X), the transcription g(Z), and its features Z^ = f(g(Z)) again. BatchNorm goes by its "
    "running statistics."
)

_QUALITY = (
    "Means over images, between the image and its transcription, both in [0, 1]; SSIM by a "
    "Gaussian window of 11 pixels. The cosine is of z and z^ of the same image: sample-wise "
    "consistency."
)

_PUBLISHED = (
    "The paper's own table (arXiv 2302.09347) was not at hand, so its column is empty. Inception's "
    "weights are no part of this project: no FID is computed."
)

_CLASSES = (
    "Nearest subspace of the training features, without taking means off; 'returned' classifies "
    "the features of the transcriptions. The largest |cosine| of two test images of different "
    "classes, over the first 2,000."
)

_NO_LAMBDA = "The encoder is a plain one: there is no lambda to sweep."

_NOISE = (
    "Above: each line is a level of the noise. Below: the best lambda of each level over the first "
    "stage's error at it, and the line through them."
)

_UNSEEN = "Images of a data set that the loop has not seen, above what it returns."

_CAPTIONS = {
    "reconstructions": ("Reconstructions", "Each image above what the loop returns."),
    "quality": ("Spread", "Every test image counts once."),
    "heat_map": (
        "Features and their transcriptions",
        "Blocks along the diagonal on the left, white between: classes lie in subspaces nearly "
        "orthogonal. The same blocks on the right: transcriptions come back to their class.",
    ),
    "spectra": ("Spectra", "A slow fall means that a class fills many directions evenly."),
    "walks": (
        "Walks",
        "A row starts at one end of a class's first principal component and ends at the other.",
    ),
    "samples": ("Samples", "A row a class."),
}
"""Title and note of a figure, in the order of the page."""
