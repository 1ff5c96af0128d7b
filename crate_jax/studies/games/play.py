"""The sequential game: for every batch a step of the leader, then the follower's many."""

import functools
import math
from typing import NamedTuple

import jax
from jax import Array

from crate_jax.studies.games.players import Game


class State(NamedTuple):
    """Both players and their optimizers, which go on from batch to batch."""

    F: object
    G: object
    leader: object
    follower: object


class Record(NamedTuple):
    """What is kept of a turn, measured on its batch after the follower's steps.

    Attributes:
      quality: Q.
      consistency: C.
      excess: how far the encoder was from its set after its projection.
    """

    quality: Array
    consistency: Array
    excess: Array


def init_state(game: Game, key: Array, dtype) -> State:
    """The start; it need not be in the players' sets."""
    F, G = game.init(key, dtype)
    return State(F, G, *game.init_optimizers(F, G))


def follow(game: Game, F, G, optimizer, batch, rate, steps: int):
    """So many steps of the follower, the leader held: its features are computed once.

    Args:
      game: the players and payoffs.
      F: the encoder.
      G: the decoder.
      optimizer: state of the decoder's.
      batch: of the turn.
      rate: learning rate.
      steps: how many.

    Returns:
      the decoder and the state of its optimizer.
    """
    Z = jax.lax.stop_gradient(game.encode(F, batch))

    def loss(G):
        return game.follower_loss(Z, game.returned(F, G, Z), batch)

    def step(carry, _):
        G, optimizer = carry
        return game.follow(G, jax.grad(loss)(G), optimizer, rate), None

    return jax.lax.scan(step, (G, optimizer), length=steps)[0]


def turn(game: Game, state: State, batch, rates, inner_steps: int) -> tuple[State, Record]:
    """One batch: the leader's step and projection, then the follower's steps.

    Args:
      game: the players and payoffs.
      state: before.
      batch: one batch.
      rates: learning rates of leader and follower, in this turn.
      inner_steps: of the follower.

    Returns:
      the state after, and what is kept.
    """
    leader_rate, follower_rate = rates
    gradient = jax.grad(lambda F: -game.leader_utility(F, state.G, batch))(state.F)
    F, leader = game.lead(state.F, gradient, state.leader, leader_rate, batch)
    G, follower = follow(game, F, state.G, state.follower, batch, follower_rate, inner_steps)
    record = Record(*game.payoffs(F, G, batch), game.excess(F, batch))
    return State(F, G, leader, follower), record


def make_turn(game: Game, inner_steps: int):
    """:func:`turn`, compiled; the state is consumed."""

    @functools.partial(jax.jit, donate_argnums=0)
    def compiled(state: State, batch, rates) -> tuple[State, Record]:
        return turn(game, state, batch, rates, inner_steps)

    return compiled


def rates_at(t: int, turns: int, leader_rate: float, follower_rate: float, decay: bool):
    """Learning rates of both players in turn t of so many: constant, or along a half cosine."""
    scale = 0.5 * (1 + math.cos(math.pi * t / turns)) if decay else 1.0
    return leader_rate * scale, follower_rate * scale
