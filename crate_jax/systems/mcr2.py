"""Maximal coding rate reduction of an encoder's features (Yu et al. 2020, arXiv 2006.08558).

``params`` of the state are the encoder's linen collections, ``params`` and, where the network has
batch normalisation, ``batch_stats``: what is saved, averaged, judged and restored is all of it, and
the optimizer moves the former. The loss is of the global batch, however many devices carry it: a
mean of the devices' losses would be another objective.
"""

from collections.abc import Mapping, Sequence

import jax
import optax
from jax import Array

from crate_jax import models, optim
from crate_jax.config import Config, ConfigError, nearest
from crate_jax.objectives.rate_reduction import (
    masked_rates,
    rate_reduction_loss,
    soft_memberships,
    view_classes,
)
from crate_jax.systems.base import State, Task

CLASSES = ("labels", "images")


class MCR2(Task):
    """The representation task; see ``train.protocol.System`` for the contract.

    Args:
      config: the run.
      total_steps, steps_per_epoch: length of the run, for the schedule.
    """

    evaluation_metrics = ("rate", "class_rate", "rate_reduction")

    def __init__(self, config: Config, *, total_steps: int, steps_per_epoch: int):
        _check(config)
        self.module = models.create(**{k: v for k, v in config.model.items() if v is not None})
        super().__init__(config, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
        self.feature_dim = self.module.feature_dim
        self.tx = optim.create(config.optimizer, self.schedule, self.trained(self.abstract_params))
        mcr2 = config.mcr2
        self.loss_settings = {
            "eps_sq": mcr2.eps_sq,
            "gamma1": mcr2.gamma1,
            "gamma2": mcr2.gamma2,
            "lmbda": mcr2.lmbda if mcr2.lmb is None else 2 * mcr2.lmb,
        }

    def fresh_params(self, rng: Array, image: Array):
        return self.module.init(rng, image)

    def trained(self, params):
        """The parameters, without the running statistics."""
        return params["params"]

    def with_trained(self, params, trained):
        """``params`` with other parameters beside the same running statistics."""
        return {**params, "params": trained}

    def memberships(self, batch: Mapping[str, Array]) -> tuple[Array, int]:
        """What the rows of a training batch belong to, and the number of classes.

        Memberships ``(N, K)`` that come with the batch win over its labels.
        """
        config = self.config
        if "membership" in batch:
            return batch["membership"], batch["membership"].shape[-1]
        if config.mcr2.classes == "images":
            N = batch["image"].shape[0]
            labels, K = view_classes(N, config.data.views), N // config.data.views
        else:
            labels, K = batch["label"], config.data.num_classes
        if config.mcr2.smoothing:
            return soft_memberships(labels, K, config.mcr2.smoothing), K
        return labels, K

    def loss(self, trained, params, batch: Mapping[str, Array]) -> tuple[Array, tuple]:
        """The loss of a batch, and the rates and the moved statistics beside it."""
        variables = self.with_trained(params, trained)
        Z, moved = self.module.apply(variables, batch["image"], train=True, mutable="batch_stats")
        loss, rates = rate_reduction_loss(Z, *self.memberships(batch), **self.loss_settings)
        return loss, (rates, moved)

    def step(
        self, state: State, batch: Mapping[str, Array], rng: Array
    ) -> tuple[State, dict[str, Array]]:
        """One update; a loss or gradient that is not finite leaves all parameters alone."""
        del rng
        value_and_grad = jax.value_and_grad(self.loss, has_aux=True)
        trained = self.trained(state.params)
        (loss, (rates, moved)), grads = value_and_grad(trained, state.params, batch)
        updates, opt_state = self.tx.update(
            grads, state.opt_state, trained, value=loss,
            grad_fn=lambda other: value_and_grad(other, state.params, batch)[1],
        )  # fmt: skip
        grad_norm = optax.tree.norm(grads)
        params = self.with_trained(state.params | moved, optax.apply_updates(trained, updates))
        return self.finish(
            state, params, opt_state,
            finite=(loss, grad_norm, optax.tree.norm(updates)),
            loss=loss, grad_norm=grad_norm, **rates,
        )  # fmt: skip

    def forward(self, params, batch: Mapping[str, Array], capture: Sequence[str] = ()):
        """Features of ``batch['image']``, and captured layers when asked for."""
        return self.module.apply(params, batch["image"], capture=tuple(capture))

    def features(self, params, batch: Mapping[str, Array]) -> Array:
        """What evaluators of representations look at, ``(N, d)``."""
        return self.forward(params, batch)

    def evaluate(self, params, batch: Mapping[str, Array]) -> dict[str, Array]:
        """The rates of a batch's examples whose ``mask`` is 1, times their ``count``.

        So a mean over batches weighs each by its examples. A rate is of one batch: it depends on
        how many examples there are.
        """
        rates, count = masked_rates(
            self.forward(params, batch), batch["label"], batch["mask"],
            self.config.data.num_classes, eps_sq=self.config.mcr2.eps_sq,
        )  # fmt: skip
        return {**{name: value * count for name, value in rates.items()}, "count": count}


def _check(config: Config) -> None:
    """Raises a sentence where the settings do not fit together."""
    name, mcr2 = config.model.get("name"), config.mcr2
    encoders = [net for net in models.NETS if "feature_dim" in models.fields(net)]
    if name not in encoders:
        raise ConfigError(f"config.model.name={name!r}{nearest(str(name), encoders)}")
    if mcr2.classes not in CLASSES:
        raise ConfigError(f"config.mcr2.classes={mcr2.classes!r}{nearest(mcr2.classes, CLASSES)}")
    if mcr2.classes == "images" and config.data.views < 2:
        raise ConfigError(
            f"config.mcr2.classes='images' wants several views of an image; "
            f"config.data.views={config.data.views}."
        )
    if config.train.accumulate != 1:
        raise ConfigError(
            "the rate of a batch is not the mean of its parts' rates; set "
            "config.train.accumulate=1, and split the batch over more devices where it is too "
            "large."
        )
