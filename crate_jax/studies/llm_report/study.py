"""The report from its settings to its files."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from crate_jax.config import ConfigError, MeshConfig
from crate_jax.convert.huggingface import Checkpoint
from crate_jax.data import tokens as token_files
from crate_jax.sharding import mesh as meshes
from crate_jax.studies.llm_report import checkpoints, memory, output, passes, summary
from crate_jax.studies.llm_report.settings import Settings


def run(settings: Settings, workdir: pathlib.Path, console: Console) -> int:
    """Measures the model and writes the report; see the package.

    Raises:
      ConfigError: before anything is compiled, on a checkpoint, texts or settings that do not fit
        together, or a report that does not fit in memory.
    """
    folder = workdir / checkpoints.PLANTED
    checkpoint = Checkpoint(checkpoints.find(settings.checkpoint, folder, settings.seed))
    revisions = [
        (step, Checkpoint(directory))
        for step, directory in checkpoints.find_revisions(settings.revisions, folder, settings.seed)
    ]
    arch = checkpoint.arch
    _check_against(settings, checkpoint, revisions)
    tokenizer = settings.tokenizer or checkpoint.directory / "tokenizer.json"
    domains = token_files.load(
        settings.tokens, length=settings.length, texts=settings.texts, vocab=arch.vocab,
        tokenizer=tokenizer, seed=settings.seed,
    )  # fmt: skip
    mesh = meshes.create_mesh(MeshConfig(preset="fsdp"))
    meshes.check_batch(mesh, settings.batch_size, "config.batch_size")
    texts = passes.Texts(
        np.concatenate([one.tokens for one in domains]),
        np.repeat(np.arange(len(domains)), [len(one.tokens) for one in domains]),
        settings.batch_size,
    )
    need = memory.estimate(
        arch, texts=len(texts.tokens), length=settings.length, batch_size=settings.batch_size,
        variants_at_once=settings.variants, dtype=settings.dtype, devices=mesh.size,
        variants=summary.count_variants(settings, arch.depth, arch.heads),
    )  # fmt: skip
    console.print(
        f"{arch.family}: {arch.depth} layers, {arch.heads} heads, width {arch.width}; "
        f"{len(texts.tokens)} texts of {settings.length} tokens; memory about "
        f"{memory.describe(need)} a device, of {mesh.size}.",
        highlight=False,
    )
    memory.refuse(need, settings.memory_limit)

    # On TPUs float32 products are otherwise taken in bfloat16.
    precision = "highest" if settings.dtype == "float32" else "default"
    with (
        jax.default_matmul_precision(precision),
        Progress(
            TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), console=console,
        ) as progress,
    ):  # fmt: skip
        outcome = _measure(settings, checkpoint, revisions, texts, mesh, progress)
    if jax.process_index() == 0:
        result = output.write(settings, workdir, arch, domains, texts, outcome, need, tokenizer)
        output.show(settings, console, result["domains"])
        console.print(f"report: {workdir / 'report.html'}", highlight=False)
    return 0


def _check_against(settings, checkpoint, revisions) -> None:
    arch = checkpoint.arch
    summary.check_names(settings, arch.depth, arch.heads)
    if settings.length > arch.max_length:
        raise ConfigError(
            f"config.length={settings.length} is more than the {arch.max_length} tokens that the "
            f"model was made for."
        )
    for _, revision in revisions:
        if revision.arch != arch:
            raise ConfigError(
                f"config.revisions: {revision.directory} is another architecture than "
                f"{checkpoint.directory}; take revisions of one model."
            )


def _measure(settings, checkpoint, revisions, texts, mesh, progress) -> output.Outcome:
    """All that takes the devices: found, variants and their losses, and the dynamics."""
    dtype, depth = jnp.dtype(settings.dtype), checkpoint.arch.depth

    def follow(what):
        task = progress.add_task(what, total=depth)
        return lambda: progress.advance(task)

    options = {"dtype": dtype, "mesh": mesh}
    found = passes.measure(
        checkpoint, texts, legacy=settings.olmo_legacy, advance=follow("statistics"), **options
    )
    means = summary.by_domain(found, texts.domain)
    variants = summary.choose_variants(settings, means["sink_score"])
    losses = np.zeros((0, len(texts.tokens)))
    if variants:
        losses = passes.change(
            checkpoint, texts, variants, at_once=settings.variants,
            advance=follow("interventions"), **options,
        )  # fmt: skip
    layer = settings.dynamics_layer
    layer = 3 * depth // 4 if layer is None else layer
    curves = []
    for step, revision in revisions:
        seen = passes.measure(
            revision, texts, legacy=settings.olmo_legacy,
            advance=follow(f"revision {step:g}"), **options,
        )  # fmt: skip
        curves.append(
            {
                "step": step,
                "loss": seen["loss"].mean(),
                "sink_rate": (seen["sink_score"] > settings.sink).mean(),
                "sink_score": seen["sink_score"][layer].mean(axis=0),
                "sink_logit": seen["sink_logit"][layer].mean(axis=0),
                "value_ratio": seen["value_ratio"][layer].mean(axis=0),
                "value_first": seen["value_first"][layer].mean(axis=0),
                "residual_first": seen["residual_first"][layer + 1].mean(),
                "residual_mean": seen["residual_mean"][layer + 1].mean(),
            }
        )
    dynamics = {name: np.array([point[name] for point in curves]) for name in (curves or [{}])[0]}
    return output.Outcome(found, means, variants, losses, dynamics, layer)
