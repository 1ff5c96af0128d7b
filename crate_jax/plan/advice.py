"""What to change where a step does not fit, each change with the memory it is computed to need."""

import dataclasses

from crate_jax.config import Config, ConfigError
from crate_jax.layers.stack import REMATS
from crate_jax.plan.formula import by_formula

MARGIN = 0.95
"""Share of the memory that a change has to stay within, for what the formula does not know."""


def advise(plan) -> list[str]:
    """Changes that would do, the least costly first and other recipes last, or that none does.

    The formula's bytes are scaled by what the compiler needed over what the formula says of the
    same setting.

    Args:
      plan: a ``predict.Plan`` that does not fit.
    """
    scale = plan.needed / plan.estimated.total
    limit = MARGIN * (plan.out_of_memory and plan.out_of_memory.available or plan.capacity)
    told, least = [], None
    an_image = by_formula(plan.config, plan.topology)[2].step / plan.config.train.batch_size
    for text, changed in changes(plan.config, plan.mesh):
        try:
            needs, _, bounds = by_formula(changed, plan.topology)
        except ConfigError:
            continue
        needed = scale * needs.total
        if least is None or needed < least[0]:
            least = (needed, text)
        if needed <= limit:
            slower = bounds.step / changed.train.batch_size / an_image
            told.append((slower, needed, text))
    told.sort(key=lambda change: ("another recipe" in change[2], *change[:2]))
    sentences = [
        f"{text}: about {needed / 1e9:.1f} GB a chip, {slower:.2f}x the time an image (formula)."
        for slower, needed, text in told[:4]
    ]
    if not sentences and least:
        sentences = [
            f"No single change is enough; {least[1]} comes closest with about "
            f"{least[0] / 1e9:.1f} GB a chip. Combine it with another, or take more chips."
        ]
    return sentences


def changes(config: Config, mesh: dict[str, int]):
    """Settings that need less memory: ``(what to write, the config with it)``."""
    remat = config.model.get("remat", "none")
    for policy in REMATS:
        if policy != remat:
            yield (
                f"--config.model.remat={policy}",
                dataclasses.replace(config, model={**config.model, "remat": policy}),
            )
    fsdp = mesh["fsdp"]
    while fsdp < mesh["fsdp"] * mesh["data"]:
        fsdp *= 2
        sizes = {"data": -1, "fsdp": fsdp, "tensor": mesh["tensor"]}
        yield (
            f"--config.mesh.fsdp={fsdp}",
            dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, **sizes)),
        )
    for times in (2, 4, 8):
        parts = config.train.accumulate * times
        if config.train.batch_size % parts == 0:
            train = dataclasses.replace(config.train, accumulate=parts)
            yield f"--config.train.accumulate={parts}", dataclasses.replace(config, train=train)
        batch = config.train.batch_size // times
        if config.train.batch_size % times == 0 and batch % config.train.accumulate == 0:
            train = dataclasses.replace(config.train, batch_size=batch)
            yield (
                f"--config.train.batch_size={batch} (another recipe)",
                dataclasses.replace(config, train=train),
            )
