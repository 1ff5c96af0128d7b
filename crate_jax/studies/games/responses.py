"""Best responses to the end of a linear game: what a player could still gain.

At a sequential equilibrium neither player can gain. The follower's best payoff is known: an
unconstrained decoder reaches ``C = 0`` with ``G = F^+``, an orthonormal one with ``G = F^T``. So
the leader, who foresees it, can reach the largest Q over the encoder's set. Both are searched for
besides, by going on from the end with the other player fixed, or answering perfectly.
"""

import dataclasses

import jax
import jax.numpy as jnp

from crate_jax.studies.games.players import LinearGame


@dataclasses.dataclass(frozen=True)
class Gaps:
    """What is left to gain, nats.

    Attributes:
      follower: ``0 - C``, what the best response gains.
      follower_found: what the search gained of it.
      leader_found: what the search gained in Q.
    """

    follower: float
    follower_found: float
    leader_found: float


def search(game: LinearGame, F, G, batch, responses) -> Gaps:
    """Gaps of both players on a batch of all samples.

    Args:
      game: the players and payoffs.
      F: the encoder; of ``msp`` it is projected by this batch first.
      G: the decoder.
      batch: moments of all samples.
      responses: ``settings.Responses``.
    """
    if game.name == "msp":
        F = jax.jit(game.project)(F, batch)
    Q, C = jax.jit(game.payoffs)(F, G, batch)
    best_C = follower_response(game, F, G, batch, responses.follower_steps, responses.follower_rate)
    best_Q = leader_response(game, F, batch, responses.leader_steps, responses.leader_rate)
    return Gaps(float(-C), float(best_C - C), float(best_Q - Q))


def follower_response(game: LinearGame, F, G, batch, steps: int, rate: float):
    """The largest C that the decoder reaches from G, its optimizer fresh; a scalar."""
    Z = game.encode(F, batch)

    def loss(G):
        return game.distance(Z, game.returned(F, G, Z), batch)

    return -_least(loss, G, game.init_optimizers(F, G)[1], game.follow, steps, rate)


def leader_response(game: LinearGame, F, batch, steps: int, rate: float):
    """The largest Q that the encoder reaches from F where C = 0 is answered; a scalar."""

    game = dataclasses.replace(game, leader="scalar_adam")

    def loss(F):
        return -game.quality(game.encode(F, batch), batch)

    def lead(F, gradient, optimizer, rate):
        return game.lead(F, gradient, optimizer, rate, batch)

    optimizer = game.init_optimizers(F, jnp.zeros(F.shape[::-1], F.dtype))[0]
    return -_least(loss, F, optimizer, lead, steps, rate)


def _least(loss, start, optimizer, move, steps: int, rate: float):
    """The least loss on the way of so many steps, the rate falling along a half cosine."""
    if not steps:
        return jax.jit(loss)(start)

    @jax.jit
    def descend(start, optimizer):
        def step(carry, t):
            point, optimizer, least = carry
            value, gradient = jax.value_and_grad(loss)(point)
            scale = 0.5 * (1 + jnp.cos(jnp.pi * t / steps))
            point, optimizer = move(point, gradient, optimizer, (rate * scale).astype(value.dtype))
            return (point, optimizer, jnp.minimum(least, value)), None

        first = (start, optimizer, jnp.full([], jnp.inf, start.dtype))
        (point, _, least), _ = jax.lax.scan(step, first, jnp.arange(steps))
        return jnp.minimum(least, loss(point))

    return descend(start, optimizer)
