"""Ends of the games are judged by the theorems."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.data.subspaces import SubspaceLaw, draw
from crate_jax.studies import games
from crate_jax.studies.games import batches, equilibrium, measure, responses, samples
from crate_jax.studies.games.players import LinearGame
from crate_jax.studies.games.settings import Data, Players, Responses
from tests.studies.games.little import GAME, LAW, TASK


def _equilibrium(task, d_z):
    """The isotropic F of independent classes, and its pseudo-inverse."""
    blocks, bases = [], []
    for j, d in enumerate(task.dims):
        X = task.train.X[task.train.y == j]
        s, Vt = np.linalg.svd(X, full_matrices=False)[1:]
        bases.append(Vt[:d].T)
        blocks.append(np.diag(np.sqrt(len(X) / d) / s[:d]))
    coordinates = np.linalg.pinv(np.concatenate(bases, axis=1))
    F = np.zeros((d_z, task.train.X.shape[1]))
    F[: sum(task.dims)] = np.block(
        [[blocks[0], np.zeros((2, 3))], [np.zeros((3, 2)), blocks[1]]]
    ) @ (coordinates)
    return F, np.linalg.pinv(F)


def test_the_best_quality_is_the_published_one():
    settings = games.Settings()
    task = samples.load(settings)
    assert equilibrium.conditions(settings, task) == ""
    np.testing.assert_allclose(equilibrium.best_quality(settings, task), 3.9618639359, atol=5e-11)


COURSE = {"consistency": np.array([-1e-9]), "excess": np.array([1e-12])}


def _judge(F, G, gaps, course=COURSE):
    task = TASK
    settings = games.Settings(data=Data(law=LAW), players=Players(features=6, eps_sq=0.8))
    assert equilibrium.conditions(settings, task) == ""
    rows = GAME.rows(F, G, task.train.X)
    return equilibrium.check(settings, task, rows, course, gaps, "end")


def _search(F, G):
    train = TASK.train
    rows = batches.take(train.X, train.y, 2, np.arange(21), 3, np.float64)
    steps = Responses(follower_steps=20, leader_steps=20)
    return responses.search(GAME, jnp.asarray(F), jnp.asarray(G), rows, steps)


def test_every_claim_holds_at_an_equilibrium(x64):
    claims = _judge(*_equilibrium(TASK, 6), responses.Gaps(0.0, 0.0, 0.0))
    assert len(claims) == 10 and all(claim.holds for claim in claims)


@pytest.mark.slow
def test_no_player_finds_a_better_response_at_an_equilibrium(x64):
    found = dataclasses.astuple(_search(*_equilibrium(TASK, 6)))
    np.testing.assert_allclose(found, 0, atol=1e-6)


def test_claims_fail_at_a_random_start(x64):
    F, G = GAME.init(jax.random.key(0), jnp.float64)
    failed = {
        claim.text for claim in _judge(F, G, responses.Gaps(1.0, 0.0, 0.0)) if not claim.holds
    }
    assert failed == {
        "the follower's best response gains nothing",
        "classes are orthogonal",
        "each class fills its subspace evenly",
        "Delta R is the isotropic one",
        "f(g(f(X_j))) spans what f(X_j) does",
    }


def test_a_course_that_left_the_numbers_holds_no_claim(x64):
    course = {"consistency": np.array([-1e-9, np.nan]), "excess": np.array([np.nan, 0.0])}
    claims = _judge(*_equilibrium(TASK, 6), responses.Gaps(0.0, 0.0, 0.0), course)
    assert [claim.text for claim in claims if not claim.holds] == [
        "C is never positive", "the encoder is in its set after each projection",
    ]  # fmt: skip


@pytest.mark.slow
def test_both_players_find_better_responses_to_a_random_start(x64):
    gaps = _search(*GAME.init(jax.random.key(0), jnp.float64))
    assert gaps.follower > gaps.follower_found > 0 and gaps.leader_found > 0


def test_adam_walks_off_the_equilibrium_and_one_scale_for_all_entries_does_not(x64):
    task = TASK
    F, _ = _equilibrium(task, 6)
    F = F + np.random.default_rng(0).normal(size=F.shape) @ (
        np.eye(7) - np.linalg.pinv(task.train.X) @ task.train.X
    )  # outside the samples' span, where nothing is felt
    rows = batches.take(task.train.X, task.train.y, 2, np.arange(21), 3, np.float64)
    slope = jax.jit(jax.grad(lambda F: -GAME.quality(GAME.encode(F, rows), rows)))
    gradient = slope(jnp.asarray(F))
    moved = {}
    for leader in ("adam", "scalar_adam"):
        game = dataclasses.replace(GAME, leader=leader)
        state = game.init_optimizers(F, F.T)[0]
        new, _ = jax.jit(game.lead)(F, gradient, state, 0.01, rows)
        moved[leader] = np.abs((np.asarray(new) - F) @ task.train.X.T).max()
    assert moved["scalar_adam"] < 1e-8 and moved["adam"] > 1e-3


def test_an_isometry_is_an_equilibrium_of_one_subspace():
    law = SubspaceLaw(sizes=(30,), dims=(3,), ambient=7)
    task = samples.Task(*draw(law, 0), law.dims, clean=True)
    settings = games.Settings(game="ssp", data=Data(law=law), players=Players(features=5))
    basis = np.linalg.svd(task.train.X)[2]
    F = basis[[3, 0, 1, 2, 4]]  # orthonormal rows that hold the subspace
    game = LinearGame("ssp", 1, 7, 5, 1.0)
    numbers = equilibrium.summary(settings, task, game.rows(F, F.T, task.test.X), "gfX")
    assert not [name for name in numbers if name.startswith("cosine")]  # there is one class
    np.testing.assert_allclose(numbers["isometry_least"], 1, rtol=1e-12)
    gaps = responses.Gaps(0.0, 0.0, 0.0)
    claims = equilibrium.check(settings, task, game.rows(F, F.T, task.train.X), COURSE, gaps, "")
    assert len(claims) == 11 and all(claim.holds for claim in claims)
    off = game.rows(basis[2:], basis[2:].T, task.train.X)  # two of three dimensions are lost
    failed = equilibrium.check(settings, task, off, COURSE, gaps, "")
    assert sum(not claim.holds for claim in failed) >= 5


def test_the_theorem_is_silent_where_its_conditions_fail():
    task = TASK
    small = games.Settings(data=Data(law=LAW), players=Players(features=4))
    assert "d_z=4 is less than the 5" in equilibrium.conditions(small, task)
    coarse = games.Settings(data=Data(law=LAW), players=Players(features=6, eps_sq=3.0))
    assert "epsilon^4" in equilibrium.conditions(coarse, task)
    noisy = dataclasses.replace(task, clean=False)
    assert "not clean" in equilibrium.conditions(games.Settings(), noisy)


def test_residuals_as_published_vanish_with_any_noise():
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(20, 2)) @ rng.normal(size=(2, 6)) + 1e-3 * rng.normal(size=(20, 6))
    X, y = rng.normal(size=(20, 6)), np.zeros(20, int)
    (published,) = measure.class_residuals(X, Z, y, (2,), "published")
    (top,) = measure.class_residuals(X, Z, y, (2,))
    assert published.max() < 1e-12 and top.min() > 0.1
