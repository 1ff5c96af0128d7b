"""Noisy images under a sweep of the first stage's lambda: SDNet's protocol for a closed loop.

A larger lambda asks the code to explain less of the image, noise included. For every kind and level
of noise the sweep finds the lambda of the best score, and a line through these over the first
stage's error tells how one would choose it without knowing the level. SDNet scores classification;
so does this where classes are known, by nearest subspace, and else the PSNR against the image
without noise.
"""

import numpy as np

from crate_jax.evaluate import corruption, nearest_subspace
from crate_jax.ops import image_quality
from crate_jax.studies.transcription.loop import Loop, Seen
from crate_jax.studies.transcription.settings import Settings, words

ACCURACY, PSNR = "accuracy", "psnr"


def levels(kind: str, count: int) -> list:
    """Levels of a kind, evenly among the protocol's; 0 takes all."""
    every = corruption.LEVELS[kind]
    if not count or count >= len(every):
        return list(every)
    return [every[i] for i in np.linspace(0, len(every) - 1, count).astype(int)]


def measure(loop: Loop, settings: Settings, clean: Seen, subspaces, advance) -> dict[str, list]:
    """By kind of noise, a row a level: accuracy and PSNR over lambda, and the best lambda.

    Args:
      loop: of which the first stage is swept; one without sparse coding is measured as it is.
      settings: of the study.
      clean: test images without noise.
      subspaces: of the classes, see ``nearest_subspace.fit``; None where there are none.
      advance: called after each level.
    """
    rng = np.random.default_rng(settings.seed)
    images, labels = clean.images[: settings.noisy_images], clean.labels[: settings.noisy_images]
    sweep = np.linspace(settings.lambda_low, settings.lambda_high, settings.lambdas)
    score = PSNR if subspaces is None else ACCURACY
    found = {}
    for kind in words(settings.noises):
        rows = []
        for level in levels(kind, settings.levels):
            noisy = corruption.corrupt(images, kind, level, rng)
            row = {"level": float(level), "lambdas": [], ACCURACY: [], PSNR: [], "error": []}
            for lmbda in sweep if loop.sparse else [np.nan]:
                z, returned, error = _see(loop, noisy, lmbda)
                psnr = np.asarray(image_quality.psnr(images, returned))
                row["lambdas"].append(float(lmbda) if loop.sparse else None)
                row[PSNR].append(float(psnr.mean()))
                row["error"].append(float(np.mean(error)) if loop.sparse else None)
                if subspaces is not None:
                    guess = nearest_subspace.residuals(z, subspaces).argmin(axis=1)
                    row[ACCURACY].append(float(np.mean(guess == labels)))
            best = int(np.argmax(row[score]))
            rows.append(row | {
                "best_lambda": row["lambdas"][best], "error_at_best": row["error"][best],
                "best_score": row[score][best],
            })  # fmt: skip
            advance()
        found[kind] = rows
    return found


def _see(loop: Loop, noisy: np.ndarray, lmbda: float):
    if loop.sparse:
        return loop.sweep(noisy, lmbda)
    seen = loop.look(noisy)
    return seen.Z, seen.returned, np.zeros(len(noisy))


def fits(found: dict[str, list]) -> dict[str, list[float]]:
    """By kind, slope and offset of the best lambda over the first stage's error."""
    lines = {}
    for kind, rows in found.items():
        error = [row["error_at_best"] for row in rows]
        if None not in error and len(set(error)) > 1:
            lines[kind] = np.polyfit(error, [row["best_lambda"] for row in rows], 1).tolist()
    return lines
