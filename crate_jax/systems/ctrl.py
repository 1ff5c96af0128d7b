"""Closed-loop transcription: an encoder that maximises against a decoder that minimises.

One batch is one move of the game (CTRL, arXiv 2111.06636, and CSC-CTRL, 2302.09347):

    encoder_steps times   theta <- ascent on T(f(X), f(sg[g(f(X))]))
    once                  eta   <- descent on T(f(X), f(g(f(X)))), the gradient through f and g

where sg stops the gradient: the follower is fixed while the leader moves. Each has an optimizer of
its own, of the same settings. After each of its updates the encoder's atoms go back to unit norm
and its sparse-coding steps are renewed, so the two always belong together.

``params`` is all that the module has: ``{"params": {"f", "g"}, "batch_stats", "csc" or
"spectral"}``. Every pass in training moves the statistics it goes through, in the order above, as
in the released code. There X and X^ are two batches, each normalised by its own statistics, so f
is nearly blind to a transcription that is all too bright or too pale. With
``ctrl.normalise_by='image'`` X^ is normalised as X was, and leaves f's statistics alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from crate_jax import models, optim
from crate_jax.config import Config, ConfigError, nearest
from crate_jax.layers import spectral_norm
from crate_jax.layers.batch_norm import BatchNorm
from crate_jax.objectives import closed_loop
from crate_jax.ops import image_quality
from crate_jax.ops.affine import turn_and_scale
from crate_jax.systems.base import State, Task

STATISTICS = ("batch_stats", spectral_norm.COLLECTION)
"""Collections that a pass in training moves."""

TRANSFORMS = ("none", "tmnist")
NORMALISE_BY = ("own", "image")
BEST_PSNR = 100.0  # dB, of images that agree to rounding


class CTRL(Task):
    """The game as a task; see ``train.protocol.System`` for the contract.

    Args:
      config: the run.
      total_steps, steps_per_epoch: length of the run, for the schedule.
    """

    evaluation_metrics = ("psnr", "ssim", "cosine")

    def __init__(self, config: Config, *, total_steps: int, steps_per_epoch: int):
        _check(config)
        self.module = create_model(config)
        super().__init__(config, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
        shapes, inner = self.abstract_params["params"], config.ctrl.encoder_steps
        self.tx = {
            "f": optim.create(config.optimizer, lambda n: self.schedule(n // inner), shapes["f"]),
            "g": optim.create(config.optimizer, self.schedule, shapes["g"]),
        }

    def fresh_params(self, rng: Array, image: Array):
        """Every collection of the module, its atoms at unit norm and its steps theirs."""
        variables = dict(self.module.init(rng, image))
        variables["params"] = self.module.project(variables["params"])
        return self.module.renew(variables)

    def optimizer_state(self, params):
        """One state a player."""
        return {player: tx.init(params["params"][player]) for player, tx in self.tx.items()}

    def eval_params(self, state: State):
        """All that the module has."""
        return state.params

    def _pass(self, variables: dict, method: str, x: Array) -> tuple[Array, dict]:
        """A pass in training, and the variables with the statistics that it moved."""
        mutable = [name for name in STATISTICS if name in variables]
        out, moved = self.module.apply(variables, x, train=True, method=method, mutable=mutable)
        return out, {**variables, **moved}

    def _encode_again(self, before: dict, variables: dict, Xhat: Array) -> tuple[Array, dict]:
        """Features of a transcription, and the variables with the statistics that they moved.

        Args:
          before: the variables before f saw the images.
          variables: those after.
          Xhat: the transcription.
        """
        own = "f" not in variables.get("batch_stats", {})
        if own or self.config.ctrl.normalise_by == "own":
            return self._pass(variables, "encode", Xhat)
        statistics = variables["batch_stats"]
        # The batch's statistics follow from how far the running ones went; the variance is the
        # unbiased one, n/(n-1) of what the images themselves were divided by.
        seen = jax.tree.map(
            lambda old, new: old + (new - old) / BatchNorm.momentum,
            before["batch_stats"]["f"], statistics["f"],
        )  # fmt: skip
        by_image = {**variables, "batch_stats": {**statistics, "f": seen}}
        return self.module.apply(by_image, Xhat, method="encode"), variables

    def value(self, Z: Array, Zhat: Array, label: Array) -> tuple[Array, dict[str, Array]]:
        """T of a batch, and its terms."""
        ctrl = self.config.ctrl
        if ctrl.objective == "binary":
            return closed_loop.binary(Z, Zhat, eps_sq=ctrl.eps_sq)
        return closed_loop.multi(
            Z, Zhat, label, self.config.data.num_classes, eps_sq=ctrl.eps_sq, gammas=ctrl.gammas
        )

    def encoder_loss(
        self, f: Any, variables: dict, image: Array, label: Array, alone: bool = False
    ) -> tuple[Array, tuple]:
        """``-T`` against a transcription that does not move, its terms, and the statistics.

        Args:
          f: the encoder's parameters, which alone are differentiated.
          variables: of the module.
          image, label: the batch.
          alone: maximise the rate reduction of the features and forget the loop (``alternating``).
        """
        before = variables = _with(variables, f=f)
        Z, variables = self._pass(variables, "encode", image)
        if alone:
            value, terms = closed_loop.multi(
                Z, Z, label, self.config.data.num_classes, eps_sq=self.config.ctrl.eps_sq,
                gammas=(1.0, 0.0, 0.0),
            )  # fmt: skip
            return -value, (terms, _statistics(variables))
        Xhat, variables = self._pass(variables, "decode", Z)
        Zhat, variables = self._encode_again(before, variables, jax.lax.stop_gradient(Xhat))
        value, terms = self.value(Z, Zhat, label)
        return -value + self._penalty(Z, Zhat), (terms, _statistics(variables))

    def decoder_loss(
        self, g: Any, variables: dict, image: Array, label: Array
    ) -> tuple[Array, tuple]:
        """``T`` as a function of the decoder's parameters ``g``; else as :meth:`encoder_loss`."""
        before = variables = _with(variables, g=g)
        Z, variables = self._pass(variables, "encode", image)
        Xhat, variables = self._pass(variables, "decode", Z)
        Zhat, variables = self._encode_again(before, variables, Xhat)
        value, terms = self.value(Z, Zhat, label)
        return value + self._penalty(Z, Zhat), (terms, _statistics(variables))

    def _penalty(self, Z: Array, Zhat: Array) -> Array | float:
        weight = self.config.ctrl.consistency
        return weight * closed_loop.consistency(Z, Zhat) if weight else 0.0

    def _update(self, player: str, loss_of, variables: dict, opt_state: dict, *args):
        """One player's update: variables, optimizers' states, loss, terms, norms to be finite."""
        own = variables["params"][player]
        (loss, (terms, moved)), grads = jax.value_and_grad(loss_of, has_aux=True)(
            own, variables, *args
        )
        updates, new = self.tx[player].update(
            grads, opt_state[player], own, value=loss,
            grad_fn=lambda p: jax.grad(loss_of, has_aux=True)(p, variables, *args)[0],
        )  # fmt: skip
        variables = _with({**variables, **moved}, **{player: optax.apply_updates(own, updates)})
        norms = optax.tree.norm(grads), optax.tree.norm(updates)
        return variables, {**opt_state, player: new}, loss, terms, norms

    def step(
        self, state: State, batch: Mapping[str, Array], rng: Array
    ) -> tuple[State, dict[str, Array]]:
        """One move of each player; what is not finite leaves both where they were."""
        ctrl, module = self.config.ctrl, self.module
        image, label = transformed(rng, batch["image"], ctrl), batch["label"]
        variables, opt_state, finite = state.params, state.opt_state, []
        for i in range(ctrl.encoder_steps):
            alone = ctrl.objective == "alternating" and i < ctrl.encoder_steps - 1

            def loss_of(f, variables, image, label, alone=alone):
                return self.encoder_loss(f, variables, image, label, alone)

            variables, opt_state, f_loss, f_terms, norms = self._update(
                "f", loss_of, variables, opt_state, image, label
            )
            variables = {**variables, "params": module.project(variables["params"])}
            variables = module.renew(variables)
            f_norm = norms[0]
            finite += [f_loss, *norms]
        variables, opt_state, g_loss, _, norms = self._update(
            "g", self.decoder_loss, variables, opt_state, image, label
        )
        return self.finish(
            state, variables, opt_state, finite=(*finite, g_loss, *norms),
            loss=g_loss, encoder_loss=f_loss, encoder_grad_norm=f_norm, decoder_grad_norm=norms[0],
            **f_terms,
        )  # fmt: skip

    def forward(self, params, batch: Mapping[str, Array], capture: Sequence[str] = ()):
        """Features of ``batch['image']``; with ``capture``, and its transcription."""
        z = self.module.apply(params, batch["image"], method="encode")
        if not capture:
            return z
        return z, {"transcription": self.module.apply(params, z, method="decode")}

    def features(self, params, batch: Mapping[str, Array]) -> Array:
        """Features ``(B, nz)``, for ``crate_jax.evaluate``."""
        return self.forward(params, batch)

    def evaluate(self, params, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Sums over the examples of a batch whose ``mask`` is 1, and their ``count``."""
        image, mask = batch["image"], batch["mask"]
        z, captured = self.forward(params, batch, ("transcription",))
        xhat = captured["transcription"]
        zhat = self.module.apply(params, xhat, method="encode")
        x, xhat = pixels(image), pixels(xhat)
        sums = {
            "psnr": jnp.minimum(image_quality.psnr(x, xhat), BEST_PSNR),
            "ssim": image_quality.ssim(x, xhat),
            "cosine": jnp.sum(z * zhat, axis=-1),
            "count": jnp.ones_like(mask),
        }
        return {name: jnp.sum(value * mask) for name, value in sums.items()}


def pixels(image: Array) -> Array:
    """Normalised pixels in [-1, 1] as intensities in [0, 1]."""
    return jnp.clip(0.5 * image.astype(jnp.promote_types(image.dtype, jnp.float32)) + 0.5, 0.0, 1.0)


def transformed(rng: Array, image: Array, ctrl) -> Array:
    """Training images as ``ctrl.transform`` and ``ctrl.dither`` make them."""
    choice_rng, dither_rng = jax.random.split(rng)
    if ctrl.transform == "tmnist":
        choice = jax.random.randint(choice_rng, image.shape[:1], 0, 5)
        angle = jnp.asarray([0.0, 0.0, 0.0, jnp.pi / 4, -jnp.pi / 4], image.dtype)[choice]
        scale = jnp.asarray([1.0, 1.5, 0.5, 1.0, 1.0], image.dtype)[choice]
        image = turn_and_scale(image, angle, scale, fill=-1.0)
    if ctrl.dither:
        image = image + ctrl.dither * jax.random.uniform(dither_rng, image.shape, image.dtype)
    return image


def create_model(config: Config):
    """The network of ``config.model``, of the data's side and channels."""
    data = config.data
    sizes = {"image_size": data.image_size, "channels": data.channels}
    settings = {key: value for key, value in config.model.items() if value is not None}
    if "name" not in settings:
        raise ConfigError(f"config.model.name is not set; write one of {', '.join(GAMES)}.")
    name = settings.pop("name")
    if name not in GAMES:
        raise ConfigError(f"config.model.name={name!r} is no game's{nearest(str(name), GAMES)}")
    module = models.create(name, **settings | sizes)
    if hasattr(module, "stages"):
        module.stages()
    return module


GAMES = ("dcgan", "sngan")
"""The networks that have an encoder and a decoder."""


def _with(variables: dict, **players) -> dict:
    """Variables with other parameters of a player."""
    return {**variables, "params": {**variables["params"], **players}}


def _statistics(variables: dict) -> dict:
    return {name: variables[name] for name in STATISTICS if name in variables}


def _check(config: Config) -> None:
    ctrl, data = config.ctrl, config.data
    for name, words in (
        ("objective", closed_loop.OBJECTIVES), ("transform", TRANSFORMS),
        ("normalise_by", NORMALISE_BY),
    ):  # fmt: skip
        value = getattr(ctrl, name)
        if value not in words:
            raise ConfigError(f"config.ctrl.{name}={value!r}{nearest(value, words)}")
    if ctrl.objective == "alternating" and ctrl.encoder_steps < 2:
        raise ConfigError(
            "config.ctrl.objective='alternating' needs config.ctrl.encoder_steps of 2 or more; "
            "with one step write 'multi'."
        )
    if any(value != 0.5 for value in (*data.mean, *data.std)):
        raise ConfigError(
            "the decoder's images lie in [-1, 1]; set config.data.mean=(0.5,) and .std=(0.5,)."
        )
    if config.train.accumulate != 1:
        raise ConfigError(
            "a coding rate is of a whole batch and no mean over parts; set "
            "config.train.accumulate=1 and spread the batch over more devices."
        )
    if config.train.ema_decay:
        raise ConfigError(
            "system 'ctrl' keeps no average of its players; set config.train.ema_decay=0."
        )
    if config.optimizer.name.startswith("schedule_free"):
        raise ConfigError(
            f"config.optimizer.name={config.optimizer.name!r} judges an average of the parameters, "
            f"which system 'ctrl' does not keep; take adam."
        )
