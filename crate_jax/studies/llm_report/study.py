"""The report from its settings to its files."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from crate_jax.config import ConfigError, MeshConfig
from crate_jax.convert.huggingface import Checkpoint
from crate_jax.data import tokens as token_files
from crate_jax.data.tokens import Domain
from crate_jax.sharding import mesh as meshes
from crate_jax.sharding import processes
from crate_jax.studies.llm_report import checkpoints, memory, output, parts, passes, summary
from crate_jax.studies.llm_report.settings import Settings


@dataclasses.dataclass(frozen=True)
class _Plan:
    """All that is known before anything is computed."""

    settings: Settings
    checkpoint: Checkpoint
    revisions: list[tuple[float, Checkpoint]]
    domains: list[Domain]
    texts: passes.Texts
    mesh: Mesh
    need: memory.Estimate
    keys: list[str]


def run(settings: Settings, workdir: pathlib.Path, console: Console) -> int:
    """Measures the model and writes the report; see the package.

    Raises:
      ConfigError: before anything is compiled, on a checkpoint, texts or settings that do not fit
        together, or a report that does not fit in memory; on all processes if one meets it.
    """
    folder = workdir / checkpoints.PLANTED
    checkpoints.plant(settings.checkpoint, settings.revisions, folder, settings.seed)
    plan = processes.together(lambda: _prepare(settings, folder))
    parts.check_alike(plan.keys)
    arch, texts = plan.checkpoint.arch, plan.texts
    console.print(
        f"{arch.family}: {arch.depth} layers, {arch.heads} heads, width {arch.width}; "
        f"{len(texts.tokens)} texts of {settings.length} tokens; memory about "
        f"{memory.describe(plan.need)} a device, of {plan.mesh.size}.",
        highlight=False,
    )
    # On TPUs float32 products are otherwise taken in bfloat16.
    precision = "highest" if settings.dtype == "float32" else "default"
    with (
        jax.default_matmul_precision(precision),
        Progress(
            TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), console=console,
        ) as progress,
    ):  # fmt: skip
        outcome = _measure(plan, workdir / "parts", progress)
    if jax.process_index() == 0:
        result = output.write(
            settings, workdir, arch, plan.domains, texts, outcome, plan.need,
            _tokenizer(settings, plan.checkpoint),
        )  # fmt: skip
        output.show(settings, console, result["domains"])
        console.print(f"report: {workdir / 'report.html'}", highlight=False)
    return 0


def _tokenizer(settings, checkpoint):
    return settings.tokenizer or checkpoint.directory / "tokenizer.json"


def _prepare(settings: Settings, folder: pathlib.Path) -> _Plan:
    checkpoint = Checkpoint(checkpoints.find(settings.checkpoint, folder))
    revisions = [
        (step, Checkpoint(directory))
        for step, directory in checkpoints.find_revisions(settings.revisions, folder)
    ]
    arch = checkpoint.arch
    _check_against(settings, checkpoint, revisions)
    domains = token_files.load(
        settings.tokens, length=settings.length, texts=settings.texts, vocab=arch.vocab,
        tokenizer=_tokenizer(settings, checkpoint), seed=settings.seed,
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
        gated=settings.gate is not None,
    )  # fmt: skip
    memory.refuse(need, settings.memory_limit)
    read = (checkpoint, *(revision for _, revision in revisions))
    keys = [parts.make_key(settings, one, texts) for one in read]
    return _Plan(settings, checkpoint, revisions, domains, texts, mesh, need, keys)


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


def _measure(plan: _Plan, folder: pathlib.Path, progress: Progress) -> output.Outcome:
    """All that takes the devices, or what a run that was stopped has left of it."""
    settings, checkpoint, texts = plan.settings, plan.checkpoint, plan.texts
    depth = checkpoint.arch.depth
    options = {"dtype": jnp.dtype(settings.dtype), "mesh": plan.mesh}

    def obtain(name, what, key, make):
        task = progress.add_task(what, total=depth)
        made, was_done = parts.find_or_make(
            folder / f"{name}.npz", key, lambda: make(advance=lambda: progress.advance(task))
        )
        if was_done:
            progress.update(task, completed=depth, description=f"{what} (was done)")
        return made

    def measure(one, **more):
        return passes.measure(one, texts, legacy=settings.olmo_legacy, **options, **more)

    found = obtain("statistics", "statistics", plan.keys[0], functools.partial(measure, checkpoint))
    means = summary.by_domain(found, texts.domain)
    variants = summary.choose_variants(settings, means["sink_score"])
    layer = settings.dynamics_layer
    layer = 3 * depth // 4 if layer is None else layer
    changed = dict.fromkeys(("loss", "residual_first"), np.zeros((0, len(texts.tokens))))
    if variants:
        change = functools.partial(
            passes.change, checkpoint, texts, variants, at_once=settings.variants, watched=layer,
            gate=settings.gate, **options,
        )  # fmt: skip
        changed = obtain("interventions", "interventions", plan.keys[0], change)
    kept = []
    for (step, revision), key in zip(plan.revisions, plan.keys[1:], strict=True):

        def follow(revision=revision, **more):
            return summary.of_revision(measure(revision, **more), texts.domain, settings.sink)

        kept.append(obtain(f"revision-{key[:16]}", f"revision {step:g}", key, follow))
    revisions, dynamics = {}, {}
    if kept:
        revisions = {name: np.stack([one[name] for one in kept]) for name in kept[0]}
        steps = [step for step, _ in plan.revisions]
        dynamics = summary.curves(steps, revisions, texts.domain, layer)
    return output.Outcome(found, means, variants, changed, revisions, dynamics, layer)
