"""A trained closed loop, ready to be asked: its config, its system and its parameters."""

import dataclasses
import json
import pathlib

import jax
import numpy as np

from crate_jax import config as configs
from crate_jax import data, run
from crate_jax.config import Config, ConfigError
from crate_jax.ops import image_quality
from crate_jax.studies.transcription.settings import Settings
from crate_jax.systems.ctrl import CTRL, pixels
from crate_jax.train import checkpoint, reading

SWEPT = "csc"
"""The encoder whose lambda can be swept."""


@dataclasses.dataclass
class Seen:
    """What the loop makes of images, all of numpy.

    Attributes:
      images, returned: intensities in [0, 1], ``(N, H, W, C)``.
      Z, Zhat: features ``(N, d)`` of both.
      labels: ``(N,)``.
      psnr, ssim: of each image.
    """

    images: np.ndarray
    returned: np.ndarray
    Z: np.ndarray
    Zhat: np.ndarray
    labels: np.ndarray
    psnr: np.ndarray
    ssim: np.ndarray

    @property
    def cosine(self) -> np.ndarray:
        """``<z, z^>`` of each image: sample-wise consistency."""
        return np.sum(self.Z * self.Zhat, axis=1)

    def means(self) -> dict[str, float]:
        """The numbers of a table."""
        return {
            "images": len(self.labels),
            "psnr": float(np.minimum(self.psnr, 100.0).mean()),
            "ssim": float(self.ssim.mean()),
            "cosine": float(self.cosine.mean()),
        }


class Loop:
    """See the module.

    Args:
      settings: of the study.
      where: the run's workdir.

    Attributes:
      config: of the run.
      module: its network.
      step: of its checkpoint.
    """

    def __init__(self, settings: Settings, where: pathlib.Path):
        self.config = _read_config(where, settings.data_dir)
        path = checkpoint.choose(where, settings.checkpoint)
        self.system: CTRL = run.system_alone(self.config)
        self.module, self.step = self.system.module, int(path.name)
        self.params = jax.device_put(self.system.adapt(reading.read_params(path)))
        self.sparse = getattr(self.module, "encoder", None) == SWEPT
        self._batch = settings.batch_size
        self._look = jax.jit(self._transcribe)
        self._decode = jax.jit(lambda z: pixels(self._apply("decode", z)))
        self._sweep = jax.jit(self._encode_with)

    def _apply(self, method: str, x, **kwargs):
        return self.module.apply(self.params, x, method=method, **kwargs)

    def _transcribe(self, image):
        z = self._apply("encode", image)
        returned = self._apply("decode", z)
        x, y = pixels(image), pixels(returned)
        quality = image_quality.psnr(x, y), image_quality.ssim(x, y)
        return x, y, z, self._apply("encode", returned), *quality

    def _encode_with(self, image, lmbda):
        """Features, transcriptions and the first stage's ``||x - A z||^2`` under another lambda."""
        count = len(self.module.stages())
        rest = self.module.of_each("lmbda", count)[1:]
        module = self.module.clone(lmbda=(lmbda, *rest))
        z, sown = module.apply(self.params, image, method="encode", mutable=["intermediates"])
        fidelity = sown["intermediates"]["f"]["stage_0"]["fidelity"][0]
        return z, pixels(self._apply("decode", z)), fidelity

    def nonzero(self, image: np.ndarray) -> list[float]:
        """Fraction of codes that are not zero, by stage; none where there are no codes."""
        _, sown = self._apply("encode", image[: self._batch], mutable=["intermediates"])
        codes = sown.get("intermediates", {}).get("f", {})
        names = sorted(name for name in codes if name.startswith("codes_"))
        return [float(np.mean(np.asarray(codes[name][0]) != 0)) for name in names]

    def see(self, split: str, count: int, config: Config | None = None) -> Seen:
        """The first images of a split, of the run's data or another's."""
        settings, parts, seen = (config or self.config).data, [], 0
        for batch in data.eval_batches(settings, batch_size=self._batch, split=split):
            kept = batch["mask"] > 0
            out = jax.device_get(self._look(batch["image"]))
            parts.append([part[kept] for part in (*out, batch["label"])])
            seen += int(kept.sum())
            if seen >= count:
                break
        x, y, z, zhat, psnr, ssim, labels = (
            np.concatenate(part)[:count] for part in zip(*parts, strict=True)
        )
        return Seen(x, y, z, zhat, labels, psnr, ssim)

    def decode(self, Z: np.ndarray) -> np.ndarray:
        """Intensities of features ``(N, d)``."""
        return np.asarray(self._decode(np.asarray(Z, np.float32)))

    def look(self, images: np.ndarray) -> Seen:
        """What the loop makes of intensities; labels are 0."""
        x, y, z, zhat, psnr, ssim = jax.device_get(self._look(_normalised(images)))
        return Seen(x, y, z, zhat, np.zeros(len(x), int), psnr, ssim)

    def sweep(self, images: np.ndarray, lmbda: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features, transcriptions and first-stage errors of intensities under a lambda."""
        return jax.device_get(self._sweep(_normalised(images), np.float32(lmbda)))


def _normalised(images: np.ndarray) -> np.ndarray:
    return np.asarray(2 * images - 1, np.float32)


def _read_config(where: pathlib.Path, data_dir: str | None) -> Config:
    path = where / "config.json"
    try:
        plain = json.loads(path.read_text())["config"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"config.run={str(where)!r} is no run's workdir: {path} cannot be read ({error})."
        ) from error
    if plain.get("system") != "ctrl":
        raise ConfigError(
            f"{where} holds a run of system {plain.get('system')!r}; config.run wants one of "
            f"system 'ctrl'."
        )
    config = configs.resolve(plain)
    if data_dir is not None:
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, data_dir=data_dir)
        )
    return config


def elsewhere(config: Config, source: str) -> Config:
    """The run's config on another source, its images squeezed to the run's square."""
    settings = {
        "source": source, "train_split": "train", "eval_split": "test", "num_classes": 1000,
        "eval_resize": "square",
    }  # fmt: skip
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **settings))
