"""The study: builds one network after the other, measures each, then writes table and page."""

import contextlib
import json
import pathlib
import time

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from crate_jax.config import ConfigError
from crate_jax.data import manifolds
from crate_jax.models.flatnet_build import Builder
from crate_jax.studies.flatnet import autoencoders, figures, report
from crate_jax.studies.flatnet.dimension import maximum_likelihood, two_nearest
from crate_jax.studies.flatnet.measure import Network, Projection, mean_square, measure
from crate_jax.studies.flatnet.records import (
    NETWORK,
    RESULT,
    IterationMetrics,
    read_network,
    read_result,
    write_network,
)
from crate_jax.studies.flatnet.settings import Cell, Settings, list_cells
from crate_jax.studies.flatnet.view import View
from crate_jax.train import whole
from crate_jax.train.checkpoint import Checkpoints
from crate_jax.train.preemption import Preemption


def run(settings: Settings, workdir: pathlib.Path, console: Console) -> int:
    """Carries the study out, or the rest of it; the exit code.

    Finished networks are not built again; one under way goes on from its last checkpoint, and comes
    out the same bit for bit.

    Raises:
      ConfigError: about data that are not there, or devices.
    """
    if jax.process_count() > 1:
        raise ConfigError("the flatnet study runs in one process; start it with --distributed=off.")
    local = jax.local_devices()
    if settings.devices > len(local):
        raise ConfigError(
            f"config.devices={settings.devices}, but there are {len(local)}; write 0 for all."
        )
    chosen = local[: settings.devices or len(local)]
    mesh = Mesh(np.asarray(chosen), ("data",)) if len(chosen) > 1 else None
    cells, results = list_cells(settings), {}
    x64 = jax.enable_x64(True) if settings.dtype == "float64" else contextlib.nullcontext()
    with (
        x64,
        IterationMetrics(workdir / "metrics.jsonl") as metrics,
        View(cells, settings.build.n_iter, console) as view,
        Preemption(Mesh(np.asarray(local), ("all",))) as preemption,
    ):
        for cell in cells:
            directory = workdir / "cells" / cell.name
            results[cell] = read_result(directory / RESULT)
            if results[cell] is not None:
                metrics.write(cell.name, read_network(directory / NETWORK)[1])
                view.begin(cell, "was done")
                continue
            directory.mkdir(parents=True, exist_ok=True)
            manifold = _load(settings, cell, console)
            builder = Builder(
                manifold.X.astype(settings.dtype), settings.build,
                seed=settings.seed + cell.trial, mesh=mesh,
            )  # fmt: skip
            if not _construct(
                settings, cell, builder, directory, metrics, view, preemption, console
            ):
                return preemption.exit_code
            results[cell] = _finish(settings, cell, builder, manifold, directory)
            view.end(cell, builder.ended)
    report.write(settings, results, workdir, console)
    return 0


def _load(settings: Settings, cell: Cell, console: Console) -> manifolds.Manifold:
    """A network's data; where they are fewer than was asked for, the console is told."""
    data = settings.data
    manifold = manifolds.load(
        data.name, points=data.points, test=data.test, ambient=data.ambient, dim=cell.dim,
        seed=settings.seed + cell.trial, digit=data.digit, data_dir=data.data_dir,
        source=data.source, components=data.components,
    )  # fmt: skip
    sizes = {"points": len(manifold.X), "test": len(manifold.X_test)}
    if manifold.image_shape is not None:
        sizes["components"] = manifold.X.shape[1]
    for name, there in sizes.items():
        asked = getattr(data, name)
        if asked not in (0, there):
            text = f"{cell.name}: config.data.{name}={asked}, but there are {there}."
            console.print(text, markup=False, highlight=False, soft_wrap=True)
    return manifold


def _construct(
    settings: Settings, cell: Cell, builder: Builder, directory: pathlib.Path,
    metrics: IterationMetrics, view: View, preemption: Preemption, console: Console,
) -> bool:  # fmt: skip
    """Builds to the end, or until a signal; whether it came to the end."""
    with Checkpoints(directory, keep_last=2, keep_best=0, report=console.print) as checkpoints:
        state = "building"
        if checkpoints.newest() is not None:
            like = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
                builder.memory(),
            )
            step, memory, _ = checkpoints.restore_newest(like)
            builder.recall(memory, *read_network(directory / NETWORK))
            state = f"taken up after iteration {step}"
        view.begin(cell, state)
        metrics.write(cell.name, builder.iterations)
        saved_at = time.monotonic()
        while builder.ended is None:
            iteration = builder.advance()
            metrics.write(cell.name, [iteration])
            view.point(cell, iteration)
            stop = preemption.poll()
            late = time.monotonic() - saved_at > settings.checkpoint_seconds
            if stop or late or builder.ended is not None:
                write_network(directory / NETWORK, builder.stack, builder.iterations)
                checkpoints.save(iteration.index + 1, builder.memory(), {"cell": cell.name})
                checkpoints.wait()
                saved_at = time.monotonic()
            if stop and builder.ended is None:
                return False
    return True


def _finish(
    settings: Settings, cell: Cell, builder: Builder, manifold: manifolds.Manifold,
    directory: pathlib.Path,
) -> dict:  # fmt: skip
    """Measures a network beside its baselines, draws its figures, writes its result."""
    stack, compare, seed = builder.stack, settings.compare, settings.seed + cell.trial
    network, X, X_test = Network(stack), manifold.X, manifold.X_test
    d = stack.intrinsic_dimension or 1
    by_d = {k: measure(network, X, X_test, k, seed) for k in sorted({d, manifold.dim or d})}
    result = {
        "data": manifold.name, "points": len(X), "ambient": X.shape[1], "true_dim": manifold.dim,
        "found_dim": stack.intrinsic_dimension, "depth": stack.depth, "ended": builder.ended,
        "iterations": len(builder.iterations),
        "dims": {str(k): int(n) for k, n in enumerate(np.bincount(stack.dims)) if n},
        "seconds": sum(iteration.seconds for iteration in builder.iterations),
        "steps": sum(iteration.steps for iteration in builder.iterations),
        "measures": by_d[d], "at_true_dim": by_d.get(manifold.dim), "autoencoders": {},
    }  # fmt: skip
    if compare.dimension:
        estimates = {"mle": maximum_likelihood(X), "two_nn": two_nearest(X)}
        result |= {name: None if np.isnan(x) else x for name, x in estimates.items()}
    peers = {}
    for kind in compare.autoencoders:
        start = time.perf_counter()
        peer = autoencoders.train(
            kind, X, compare.code or d, epochs=compare.epochs, batch=compare.batch, seed=seed
        )
        peers[kind] = peer
        result["autoencoders"][kind] = {
            "mse": mean_square(peer.decode(peer.encode(X)), X),
            "mse_test": mean_square(peer.decode(peer.encode(X_test)), X_test),
            "code": compare.code or d, "seconds": time.perf_counter() - start,
        }  # fmt: skip
    flat = Projection.of(network.encode(X), d)
    figures.draw(manifold, network, flat, builder.iterations, peers, result, compare, directory)
    whole.write_text(directory / RESULT, json.dumps(result, indent=2, allow_nan=False) + "\n")
    return result
