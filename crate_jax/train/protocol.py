"""What the loop asks of a task. ``train`` knows this and no concrete system."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from jax import Array


class State(Protocol):
    """What a run carries from step to step: a pytree with at least these.

    Attributes:
      step: updates tried so far.
      bad_steps: consecutive steps up to here whose loss or gradient was not finite.
      bad_total: all such steps so far.
      params: the parameters that are trained.
    """

    step: Array
    bad_steps: Array
    bad_total: Array
    params: Any


class System(Protocol):
    """A model, its objectives and its training step.

    ``init``, ``step``, ``evaluate`` and ``measure`` are pure functions of their arguments, compiled
    once. Metrics are float32 scalars by name. ``params`` are those of :meth:`eval_params`. A system
    of representations also has ``features(params, batch) -> (N, d)``, for the evaluators of
    ``config.evaluate``.
    """

    evaluation_metrics: tuple[str, ...]
    """What :meth:`evaluate` gives besides ``count``."""

    def init(self, rng: Array, example_batch: Mapping[str, Array]) -> State:
        """A fresh state; only the shapes of the batch matter."""

    def adapt(self, params: Any, skip: Sequence[str] = ()) -> Any:
        """Trained parameters as this task's, less the paths that start with ``skip``.

        Raises a ConfigError where they do not fit.
        """

    def start_from(self, state: State, params: Any) -> State:
        """A fresh state with the parameters that :meth:`adapt` gave."""

    def step(
        self, state: State, batch: Mapping[str, Array], rng: Array
    ) -> tuple[State, dict[str, Array]]:
        """One update and its metrics; one that is not finite leaves the parameters alone."""

    def forward(self, params: Any, batch: Mapping[str, Array], capture: Sequence[str] = ()) -> Any:
        """The model's output, for evaluators, probes and export."""

    def eval_params(self, state: State) -> Any:
        """The parameters that are judged: an average where the task keeps one."""

    def evaluate(self, params: Any, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Sums over the examples of a batch whose ``mask`` is 1, and their ``count``."""

    def measure(self, params: Any, batch: Mapping[str, Array]) -> dict[str, Array]:
        """White-box curves over depth on a fixed batch, each ``(layers,)``."""
