"""Pure functions of arrays. They import jax and nothing of ours; every symbol is its paper's."""
