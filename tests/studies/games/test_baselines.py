"""What the games are compared with is trained by the published losses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.studies.games import baselines
from crate_jax.studies.games.settings import Baselines
from tests.studies.games.little import TASK

NETS = baselines.Networks(7, 2, 3, Baselines(layers=1, width=4, noise=2, code=2))


@pytest.mark.parametrize(
    "model",
    ["gan", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cgan", "infogan"))],
)
def test_a_generator_wants_to_be_taken_for_real_but_as_released_for_fake(model):
    Model, task = baselines.MODELS[model], TASK
    params = Model.init(NETS, jax.random.key(0))
    X, y = jnp.asarray(task.train.X, jnp.float32), jnp.asarray(task.train.y)
    judge = "discriminator"
    # a judge that calls everything fake
    last = params[judge][-1]
    last["kernel"], last["bias"] = jnp.zeros_like(last["kernel"]), jnp.full_like(last["bias"], 9.0)
    released = dataclasses.replace(NETS.settings, paper_baseline_bug=True)
    ways = (NETS, dataclasses.replace(NETS, settings=released))

    @jax.jit
    def losses(params):
        key = jax.random.key(1)
        return [[loss(params) for loss in Model.losses(n, params, X, y, key)[:2]] for n in ways]

    for loss, (generator, discriminator) in zip((9.0, 0.0), losses(params), strict=True):
        np.testing.assert_allclose(generator, loss, atol=1e-3)
        np.testing.assert_allclose(discriminator, 9.0 if model == "gan" else 4.5, atol=2e-3)


@pytest.mark.slow
def test_an_autoencoder_pays_for_its_features_by_the_published_formula():
    params = baselines.CVAE.init(NETS, jax.random.key(0))
    task = TASK
    X, y = jnp.asarray(task.train.X, jnp.float32), jnp.asarray(task.train.y)
    (loss,) = baselines.CVAE.losses(NETS, params, X, y, jax.random.key(1))
    mean, log_variance = map(np.asarray, baselines.CVAE.encode(NETS, params, X, y))
    made = baselines.CVAE.reconstruct(NETS, params, jax.random.key(1), X, y)
    kl = -0.5 * (1 + log_variance - mean**2 - np.exp(log_variance))
    np.testing.assert_allclose(
        loss(params), kl.mean() + ((made - task.train.X) ** 2).mean(), rtol=1e-5
    )


def test_pca_of_every_class_gives_clean_samples_back():
    task = TASK
    np.testing.assert_allclose(
        baselines.class_pca(task.train, task.test, task.dims), task.test.X, atol=1e-12
    )
