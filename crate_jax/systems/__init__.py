"""Tasks: a model, its objective, its training step. ``create`` makes the one a config names.

Each reads its own section of the config, of the task's name; ``base`` has what they share.
"""

from crate_jax.config import Config, ConfigError, nearest
from crate_jax.systems.classify import Classify
from crate_jax.systems.ctrl import CTRL
from crate_jax.systems.mcr2 import MCR2

SYSTEMS = {"classify": Classify, "mcr2": MCR2, "ctrl": CTRL}
"""What ``config.system`` may name."""


def create(config: Config, *, total_steps: int, steps_per_epoch: int):
    """The system that ``config.system`` names.

    Raises:
      ConfigError: on an unknown name, or settings that the system cannot carry out.
    """
    if config.system not in SYSTEMS:
        raise ConfigError(f"config.system={config.system!r}{nearest(config.system, SYSTEMS)}")
    return SYSTEMS[config.system](config, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
