"""Image classification: any model with a head, softmax cross-entropy, one optimizer."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from crate_jax import models, optim
from crate_jax.config import Config, ConfigError
from crate_jax.interpret import layers
from crate_jax.objectives.cross_entropy import cross_entropy, smoothed, targets
from crate_jax.objectives.orthogonality import orthogonality
from crate_jax.systems.base import State, Task
from crate_jax.systems.mixing import mix

MEASURED_AT_ONCE = 16
"""Images whose captured layers are in memory together while layers are measured."""


class Classify(Task):
    """The classification task; see ``train.protocol.System`` for the contract.

    Args:
      config: the run.
      total_steps, steps_per_epoch: length of the run, for the schedule.
    """

    def __init__(self, config: Config, *, total_steps: int, steps_per_epoch: int):
        self.module = create_model(config)
        super().__init__(config, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
        self.tx = optim.create(config.optimizer, self.schedule, self.abstract_params)
        if config.classify.ortho_penalty:
            try:
                jax.eval_shape(orthogonality, self.abstract_params)
            except ValueError as error:
                raise ConfigError(f"config.classify.ortho_penalty: {error}") from error
        classify = config.classify
        self.on_off = (
            {"on": classify.on_value, "off": classify.off_value}
            if classify.on_value is not None
            else smoothed(classify.label_smoothing, self.module.num_classes)
        )

    @property
    def evaluation_metrics(self) -> tuple[str, ...]:
        """What :meth:`evaluate` gives besides ``count``."""
        top5 = ("accuracy_top5",) if self.module.num_classes > 5 else ()
        return ("loss", "accuracy", *top5)

    def fresh_params(self, rng: Array, image: Array):
        return self.module.init(rng, image)["params"]

    def loss(
        self, params, image: Array, target: Array, label: Array, rng: Array
    ) -> tuple[Array, Array]:
        """Mean objective of a batch, and the accuracy of its logits."""
        logits = self.module.apply({"params": params}, image, train=True, rngs={"dropout": rng})
        loss = cross_entropy(logits, target).mean()
        if self.config.classify.ortho_penalty:
            loss += self.config.classify.ortho_penalty * orthogonality(params)
        return loss, (logits.argmax(-1) == label).mean(dtype=jnp.float32)

    def loss_and_grad(self, params, *batch) -> tuple[tuple[Array, Array], Any]:
        """:meth:`loss` and its gradient, averaged over ``config.train.accumulate`` microbatches."""
        *batch, rng = batch
        parts = self.config.train.accumulate
        value_and_grad = jax.value_and_grad(self.loss, has_aux=True)
        if parts == 1:
            return value_and_grad(params, *batch, rng)

        def add(total, part):
            return jax.tree.map(jnp.add, total, value_and_grad(params, *part)), None

        xs = (*(microbatches(x, parts) for x in batch), jax.random.split(rng, parts))
        shapes = jax.eval_shape(value_and_grad, params, *jax.tree.map(lambda x: x[0], xs))
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        total, _ = jax.lax.scan(add, zero, xs)
        return jax.tree.map(lambda x: x / parts, total)

    def step(
        self, state: State, batch: Mapping[str, Array], rng: Array
    ) -> tuple[State, dict[str, Array]]:
        """One update; a loss or gradient that is not finite leaves the parameters alone."""
        mix_rng, drop_rng = jax.random.split(rng)
        classify, label = self.config.classify, batch["label"]
        image, target = mix(
            mix_rng, batch["image"], targets(label, self.module.num_classes, **self.on_off),
            mixup_alpha=classify.mixup_alpha, cutmix_alpha=classify.cutmix_alpha,
        )  # fmt: skip
        data = (image, target, label, drop_rng)
        (loss, accuracy), grads = self.loss_and_grad(state.params, *data)
        updates, opt_state = self.tx.update(
            grads, state.opt_state, state.params, value=loss,
            grad_fn=lambda params: self.loss_and_grad(params, *data)[1],
        )  # fmt: skip
        grad_norm = optax.tree.norm(grads)
        return self.finish(
            state, optax.apply_updates(state.params, updates), opt_state,
            finite=(loss, grad_norm, optax.tree.norm(updates)),
            loss=loss, accuracy=accuracy, grad_norm=grad_norm,
        )  # fmt: skip

    def forward(self, params, batch: Mapping[str, Array], capture: Sequence[str] = ()):
        """Logits of ``batch['image']``, and captured layers when asked for."""
        return self.module.apply({"params": params}, batch["image"], capture=tuple(capture))

    def evaluate(self, params, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Sums over the examples of a batch whose ``mask`` is 1, and their ``count``."""
        logits = self.forward(params, batch)
        label, mask = batch["label"], batch["mask"]
        one_hot = targets(label, logits.shape[-1], on=1.0, off=0.0)
        sums = {
            "loss": cross_entropy(logits, one_hot),
            "accuracy": logits.argmax(-1) == label,
            "count": jnp.ones_like(mask),
        }
        if "accuracy_top5" in self.evaluation_metrics:
            top = jax.lax.top_k(logits, 5)[1]
            sums["accuracy_top5"] = (top == label[:, None]).any(-1)
        return {name: jnp.sum(value * mask) for name, value in sums.items()}

    def measure(self, params, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Coding rate and non-zero fraction of every layer, over the images of a fixed batch."""

        def some(image):
            return layers.measure(self.forward(params, {"image": image}, layers.CAPTURE)[1])

        image = batch["image"]
        parts = -(-image.shape[0] // MEASURED_AT_ONCE)
        while image.shape[0] % parts:
            parts += 1
        measured = jax.lax.map(some, microbatches(image, parts))
        return layers.summarise(
            jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1), measured)
        )


def create_model(config: Config):
    """The network of ``config.model``, with as many classes as the data has unless it says so."""
    settings = {"num_classes": config.data.num_classes} | {
        key: value for key, value in config.model.items() if value is not None
    }
    if "name" not in settings:
        raise ConfigError(f"config.model.name is not set; write one of {', '.join(models.MODELS)}.")
    name = settings.pop("name")
    if name in models.NETS:
        raise ConfigError(
            f"config.model.name={name!r} gives features and no classes; config.system='classify' "
            f"takes {', '.join(models.MODELS)}."
        )
    module = models.create(name, **settings)
    _check_attention(name, module)
    size, patch = config.data.image_size, module.patch
    if size % patch:
        raise ConfigError(
            f"config.data.image_size={size} does not divide into patches of {patch}x{patch}; "
            f"change it or config.model.patch."
        )
    if module.num_classes < config.data.num_classes:
        raise ConfigError(
            f"config.model.num_classes={module.num_classes} is smaller than "
            f"config.data.num_classes={config.data.num_classes}."
        )
    return module


def _check_attention(name: str, module) -> None:
    """Raises a sentence where the implementation of attention does not run here."""
    implementation, backend = module.attention_implementation, jax.default_backend()
    if implementation == "cudnn" and backend != "gpu":
        raise ConfigError(
            f"config.model.attention_implementation='cudnn' needs an NVIDIA GPU; this is a "
            f"{backend}. Write 'xla' or 'einsum'."
        )
    if implementation == "pallas" and backend == "gpu":
        raise ConfigError(
            "config.model.attention_implementation='pallas' is a kernel for TPUs; on a GPU write "
            "'cudnn' or 'xla'."
        )
    if implementation == "pallas" and (name == "vit" or getattr(module, "attention", "") == "mhsa"):
        raise ConfigError(
            "config.model.attention_implementation='pallas' is for attention='mssa', where "
            "queries, keys and values are one; write 'xla' or 'einsum'."
        )


def microbatches(x: Array, parts: int) -> Array:
    """``(B, ...)`` as ``(parts, B / parts, ...)``, every device keeping a share of each part."""
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
