"""Carries out one method on some samples: plays a game, or trains a baseline."""

import dataclasses
import pathlib
import time

import jax
import numpy as np
from rich.console import Console

from crate_jax.config import ConfigError
from crate_jax.evaluate import nearest_subspace
from crate_jax.studies.claims import Claim
from crate_jax.studies.games import baselines, batches, equilibrium, play, responses, saves
from crate_jax.studies.games.players import make_game


@dataclasses.dataclass
class Outcome:
    """What a method ended in.

    Attributes:
      name: of the run: the method and the varied setting.
      method: of ``settings.METHODS``.
      made: the name of what lives beside the samples, ``gfX`` or ``gZ``.
      features: rows of the test samples by name.
      trained: of the training samples, where the theorem says something.
      numbers: by name, of the test samples.
      seconds: of playing or training, compiling included; of this start alone.
      course: ``quality``, ``consistency`` and ``excess`` of every turn of a game.
      losses: what each optimizer of a baseline minimised, ``(T, players)``, and their names.
      claims: what the theorem says, where it says something.
      best: the largest Q, where the theorem gives it.
      silent: why it says nothing.
    """

    name: str
    method: str
    made: str
    features: dict[str, np.ndarray]
    numbers: dict[str, float]
    seconds: float
    course: dict[str, np.ndarray] | None = None
    losses: tuple[np.ndarray, tuple[str, ...]] | None = None
    claims: list[Claim] = dataclasses.field(default_factory=list)
    best: float | None = None
    trained: dict[str, np.ndarray] | None = None
    silent: str = ""


def carry_out(
    method: str, name: str, settings, task, directory: pathlib.Path, console: Console
) -> Outcome:
    """Runs a method on the samples of a task.

    Args:
      method: of ``settings.METHODS``.
      name: of the run.
      settings: with the varied setting's value.
      task: its samples.
      directory: where the state is saved.
      console: shows the progress.

    Raises:
      ConfigError: where it diverges.
    """
    if method in ("ctrl", "ctrl_fcnn"):
        return play_game(method, name, settings, task, directory, console)
    start = time.perf_counter()
    X, losses = task.test.X, None
    if method == "pca":
        made, rows = "gfX", baselines.class_pca(task.train, task.test, task.dims)
    else:
        model = baselines.MODELS[method]
        nets = baselines.Networks(
            X.shape[1], task.num_classes, settings.players.features, settings.baselines
        )
        order = order_of(settings, task, settings.baselines.epochs)
        with console.status(f"{name}: {len(order):,} batches ..."):
            params, values = baselines.train(model, nets, task.train, order, settings.seed)
        names = ("all parts" if len(p) == len(params) else p[0] for p in model.players)
        losses = values, tuple(names)
        made = "gfX" if hasattr(model, "reconstruct") else "gZ"
        rows = baselines.generate(model, nets, params, task.test, settings.seed)
        if not np.isfinite(rows).all():
            raise ConfigError(
                f"{name}: what it makes is not finite; lower config.baselines.learning_rate."
            )
    features = {"X": np.asarray(X, np.float64), made: rows}
    seconds = time.perf_counter() - start
    numbers = equilibrium.summary(settings, task, features, made)
    return Outcome(name, method, made, features, numbers, seconds, losses=losses)


def order_of(settings, task, epochs: int) -> np.ndarray:
    """Indices of the samples of every batch; a function of the settings."""
    shuffle = settings.play.shuffle
    if shuffle is None:
        shuffle = settings.game == "msp"
    rng = np.random.default_rng([settings.seed, 1])
    return batches.batch_order(len(task.train.y), settings.play.batch, epochs, shuffle, rng)


def play_game(method, name, settings, task, directory: pathlib.Path, console: Console) -> Outcome:
    """Plays to the end, or on from where a stopped game was saved, and judges where it ended."""
    start = time.perf_counter()
    linear = method == "ctrl"
    dtype = np.dtype(settings.precision)
    K, d = task.num_classes, task.train.X.shape[1]
    game = make_game(settings, K, d, linear)
    order = order_of(settings, task, settings.play.epochs)
    X, y = task.train.X, task.train.y
    rows = batches.class_rows(X, y, K, order) if linear else None
    state = play.init_state(game, jax.random.key(settings.seed), dtype)
    inner = settings.play.inner_steps if linear else settings.play.network_inner_steps
    turn = play.make_turn(game, inner)
    file = directory / "state.npz"
    state, records = saves.read(file, state) or (state, [])
    saved = time.perf_counter()
    with console.status(f"{name} ...") as status:
        for t in range(len(records), len(order)):
            batch = batches.take(X, y, K, order[t], rows, dtype)
            rates = play.rates_at(
                t, len(order), settings.play.leader_rate, settings.play.follower_rate,
                settings.play.decay,
            )  # fmt: skip
            state, record = turn(state, batch, rates)
            records.append(record)
            if t % 10 == 0 or time.perf_counter() - saved > settings.play.save_seconds:
                Q, C = float(record.quality), float(record.consistency)
                status.update(f"{name}: step {t + 1} of {len(order)}, Q {Q:.4f}, C {C:.1e}")
                if not np.isfinite(Q + C):
                    break
            if time.perf_counter() - saved > settings.play.save_seconds:
                saves.write(file, state, records)
                saved = time.perf_counter()
        course = saves.course(records)
        check_course(name, course)
        saves.write(file, state, records)
    seconds = time.perf_counter() - start
    features = game.rows(state.F, state.G, task.test.X)
    numbers = equilibrium.summary(settings, task, features, "gfX")
    numbers |= {"last_quality": course["quality"][-1], "last_C": course["consistency"][-1]}
    if settings.data.source != "subspaces":
        numbers |= _accuracies(game.rows(state.F, state.G, X), features, task)
    outcome = Outcome(name, method, "gfX", features, numbers, seconds, course=course)
    if not linear:
        outcome.silent = "the theorem is about linear players"
        return outcome
    outcome.silent = equilibrium.conditions(settings, task)
    if not outcome.silent:
        with console.status(f"{name}: best responses ..."):
            every = batches.class_rows(X, y, K, np.arange(len(y))[None])
            whole = batches.take(X, y, K, np.arange(len(y)), every, dtype)
            gaps = responses.search(game, state.F, state.G, whole, settings.responses)
        outcome.best = equilibrium.best_quality(settings, task)
        outcome.trained = game.rows(state.F, state.G, X)
        outcome.claims = equilibrium.check(settings, task, outcome.trained, course, gaps, name)
        reached = equilibrium.quality(settings, task, outcome.trained["fX"])
        outcome.numbers |= {"bound": outcome.best, "trained_quality": reached}
    return outcome


def check_course(name: str, course: dict[str, np.ndarray]) -> None:
    """Raises a ConfigError where a game has left the numbers."""
    lost = np.flatnonzero(~np.isfinite(course["quality"] + course["consistency"]))
    if len(lost):
        raise ConfigError(
            f"{name}: Q or C is no finite number from step {lost[0] + 1} on; lower "
            "config.play.leader_rate or config.play.follower_rate."
        )


def _accuracies(trained, tested, task) -> dict[str, float]:
    """Test accuracy of the nearest subspace, of samples and of features."""
    y, out = task.train.y, {}
    for name in ("X", "fX"):
        bases = nearest_subspace.fit(
            trained[name], y, task.num_classes, components=task.dims[0], centered=False
        )
        nearest = nearest_subspace.residuals(tested[name], bases).argmin(axis=1)
        out[f"accuracy_{name}"] = float((nearest == task.test.y).mean())
    return out
