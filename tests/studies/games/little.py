"""Samples of two little subspaces, and linear players of them."""

from crate_jax.data.subspaces import SubspaceLaw, draw
from crate_jax.studies.games.players import LinearGame
from crate_jax.studies.games.samples import Task

LAW = SubspaceLaw(sizes=(12, 9), dims=(2, 3), ambient=7)
TASK = Task(*draw(LAW, 0), LAW.dims, clean=True)
GAME = LinearGame("msp", 2, 7, 6, 0.8)
