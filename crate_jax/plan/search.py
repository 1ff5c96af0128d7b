"""Batch x rematerialisation x mesh x attention: what fits, the fastest first.

All candidates are estimated by formula; of those that fit there, the best few are compiled (TPUs)
and ranked by what the compiler says. A candidate that fails is reported and left out.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from crate_jax import models
from crate_jax.config import Config, ConfigError, MeshConfig
from crate_jax.layers.stack import REMATS
from crate_jax.ops.attention import IMPLEMENTATIONS
from crate_jax.plan import predict
from crate_jax.plan.formula import by_formula
from crate_jax.plan.topology import Topology

SLACK = 1.25
"""How much more than a chip's memory a candidate may need by the formula, which knows no fusion."""

FUSED = ("pallas", "cudnn")
"""Implementations of attention that form no weights in memory."""

MESHES_EACH = 2
"""Meshes that are compiled for one batch, policy and attention."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A candidate and what the formula says of it."""

    config: Config
    needed: float
    seconds: float

    @property
    def seconds_per_image(self) -> float:
        """What candidates are ranked by."""
        return self.seconds / self.config.train.batch_size


def candidates(config: Config, topology: Topology, batches: Sequence[int]) -> Iterator[Config]:
    """Every combination worth a formula."""
    left_out = "cudnn" if topology.chip.kind == "tpu" else "pallas"
    attentions = [name for name in IMPLEMENTATIONS if name != left_out]
    heads = models.create(**_model(config)).heads
    for batch, remat, attention, sizes in itertools.product(
        batches, REMATS, attentions, _meshes(topology, heads)
    ):
        if remat == "attention" and attention in FUSED:
            continue  # which recompute the weights anyway
        model = {**config.model, "remat": remat, "attention_implementation": attention}
        train = dataclasses.replace(config.train, batch_size=batch)
        yield dataclasses.replace(config, model=model, train=train, mesh=MeshConfig(**sizes))


def _model(config: Config) -> dict:
    settings = {k: v for k, v in config.model.items() if v is not None}
    return settings | {"attention_implementation": "einsum"}


def _meshes(topology: Topology, heads: int) -> Iterator[dict[str, int]]:
    slices = topology.slices if topology.chip.kind == "tpu" else 1
    within = topology.chips // slices
    for tensor in (1, 2, 4):
        if within % tensor or heads % tensor:
            continue
        for power in range(int(math.log2(within // tensor)) + 1):
            fsdp = 2**power
            if within // tensor % fsdp == 0:
                data = within // tensor // fsdp
                yield {"slice": slices, "data": data, "fsdp": fsdp, "tensor": tensor}


def prune(found: Sequence[Estimate], batch: int, limit: int) -> list[Estimate]:
    """The ``limit`` candidates to compile: the recipe's batch first, each setting in few meshes.

    The formula is blind to vector units, which the softmax of unfused attention keeps busy for a
    third of a step: fused ones come first.
    """
    chosen, taken = [], {}

    def rank(estimate: Estimate):
        train, model = estimate.config.train, estimate.config.model
        fused = model["attention_implementation"] in FUSED
        return train.batch_size != batch, not fused, estimate.seconds_per_image

    for estimate in sorted(found, key=rank):
        model = estimate.config.model
        key = (
            estimate.config.train.batch_size, model["remat"], model["attention_implementation"],
        )  # fmt: skip
        if taken.get(key, 0) < MESHES_EACH:
            taken[key] = taken.get(key, 0) + 1
            chosen.append(estimate)
    return chosen[:limit]


def search(
    config: Config,
    topology: Topology,
    *,
    examples: int | None,
    batches: Sequence[int],
    max_compiles: int,
    say: Callable[[str], None],
) -> tuple[list[predict.Plan], list[str]]:
    """Plans that fit, the fastest an image first, and a sentence for each candidate that failed.

    Args:
      config, topology, examples: as in ``predict.make``; the config as it is comes first.
      batches: global batches to try.
      max_compiles: plans made at most, the config's own included.
      say: takes a line of progress.
    """
    found, refused = [], 0
    for candidate in candidates(config, topology, batches):
        try:
            needs, _, bounds = by_formula(candidate, topology)
        except ConfigError:
            refused += 1
            continue
        # Compilers hide little of the traffic of optimizer and vector units behind the products.
        found.append(Estimate(candidate, needs.total, bounds.compute + bounds.hbm + bounds.exposed))
    fitting = [e for e in found if e.needed <= SLACK * topology.chip.memory.value]
    say(f"{len(found)} settings by formula ({refused} more do not divide); {len(fitting)} may fit.")
    chosen = [config] + [
        e.config for e in prune(fitting, config.train.batch_size, max_compiles - 1)
    ]
    plans, failures = [], []
    for i, candidate in enumerate(chosen, start=1):
        name = describe(candidate)
        try:
            plan = predict.make(candidate, topology, examples)
        except Exception as error:  # whatever the compiler of one candidate raises
            failures.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}")
            say(f"{i}/{len(chosen)}  {name}: failed")
            continue
        if plan.fits:
            plans.append(plan)
            verdict = (
                f"{1e3 * plan.step_seconds:.0f} ms, MFU {100 * plan.mfu(plan.step_seconds):.1f} %"
            )
        else:
            verdict = f"does not fit, {plan.needed / 1e9:.1f} GB"
        say(f"{i}/{len(chosen)}  {name}: {verdict}")
    plans.sort(key=lambda p: p.step_seconds / p.config.train.batch_size)
    return plans, failures


def describe(config: Config) -> str:
    """A candidate in a few words."""
    mesh = dataclasses.asdict(config.mesh)
    sizes = [f"{axis} {n}" for axis, n in mesh.items() if axis != "preset" and n not in (None, 1)]
    model = config.model
    return ", ".join(
        [
            f"batch {config.train.batch_size}",
            f"remat {model.get('remat', 'none')}",
            f"attention {model.get('attention_implementation', 'einsum')}",
            *(sizes or [f"mesh {config.mesh.preset}"]),
        ]
    )
