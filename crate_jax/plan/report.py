"""A plan in the terminal: what is known, what the compiler reported, what is predicted."""

from collections import defaultdict
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from crate_jax.plan.collectives import Collective
from crate_jax.plan.predict import Plan, setting

WIDTH = 100

KERNEL_CAVEAT = (
    "Custom calls (fused kernels) are not in the compiler's cycles. Their time is added by "
    "formula, the longer of what their products take in the matrix units (idle lanes counted) and "
    "of their bytes at full bandwidth; softmax is in neither: the least it can be."
)


def gigabytes(size: float) -> str:
    """Bytes in units of 1e9."""
    return f"{size / 1e9:,.2f} GB"


def milliseconds(seconds: float) -> str:
    """Seconds in units of 1e-3."""
    return f"{1e3 * seconds:,.1f} ms"


def percent(fraction: float) -> str:
    """A fraction of one."""
    return f"{100 * fraction:.1f} %"


def show(plan: Plan, console: Console) -> None:
    """Prints one plan."""
    what = setting(plan.config)
    mesh = ", ".join(f"{axis} {n}" for axis, n in plan.mesh.items() if n > 1) or "one chip"
    console.print(
        f"\n[bold]{what['model']}[/] on [bold]{plan.topology.name}[/] "
        f"({plan.topology.chips} chips: {mesh}), batch {what['batch']:,}"
        + (f" in {what['accumulate']} parts" if what["accumulate"] > 1 else "")
        + f", remat {what['remat']}, attention {what['attention_implementation']}, {what['dtype']}"
    )
    verdict(plan, console)
    console.print(_known(plan), _memory(plan), _time(plan))
    if plan.work.collectives:
        console.print(_collectives(plan))
    _notes(plan, console)


def verdict(plan: Plan, console: Console) -> None:
    """Fits or not, by whose word, and what to do."""
    spare = plan.capacity - plan.needed
    if plan.out_of_memory is not None:
        who = "the compiler refuses it"
    else:
        who = "the compiler's word" if plan.compiled else "by formula, nothing was compiled"
    if plan.fits:
        console.print(
            f"[bold green]Fits[/] ({who}): {gigabytes(plan.needed)} of "
            f"{gigabytes(plan.capacity)} a chip, {gigabytes(spare)} to spare."
        )
        return
    limit = plan.capacity
    if plan.out_of_memory is not None and plan.out_of_memory.available:
        limit = plan.out_of_memory.available
    console.print(
        f"[bold red]Does not fit[/] ({who}): {gigabytes(plan.needed)} needed, "
        f"{gigabytes(limit)} there, {gigabytes(plan.needed - limit)} too much."
    )
    for sentence in plan.advice:
        console.print(f"  {sentence}", highlight=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(*columns, title=title, title_justify="left", box=None, width=WIDTH)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _known(plan: Plan) -> Table:
    facts, batch = plan.facts, plan.config.train.batch_size
    table = _table("\nKnown: counted from the config", "", "")
    table.add_row("parameters", f"{plan.parameters:,}")
    table.add_row(
        "model FLOPs a step; an image",
        f"{facts.model_flops:.4g}; {facts.model_flops / batch:.4g}",
    )
    again = facts.hardware_flops / facts.model_flops - 1
    table.add_row(
        "hardware FLOPs a step (what is done twice counts twice)",
        f"{facts.hardware_flops:.4g} (+{percent(again)})",
    )
    steps = f"{plan.total_steps:,}" if plan.total_steps else "unknown"
    table.add_row(
        f"steps of the recipe ({plan.examples_source})" if plan.examples else "steps", steps
    )
    return table


def _memory(plan: Plan) -> Table:
    table = _table("\nMemory of a chip", "", "compiler", "formula")
    c, e = plan.compiled, plan.estimated
    state = sum(e.state.values()) + e.batch
    rows = (
        ("arguments: parameters, moments, averages, batch", c and c.arguments, state),
        ("output, beyond what takes over the arguments", c and c.output - c.alias, 0),
        ("temporaries: activations, gradients, copies", c and c.temporaries, e.total - state),
        ("program", c and c.code, None),
        ("total", c and c.total, e.total),
    )
    for name, compiler, formula in rows:
        table.add_row(
            name,
            "" if compiler is None else gigabytes(compiler),
            "" if formula is None else gigabytes(formula),
        )
    return table


def _time(plan: Plan) -> Table:
    r, chip = plan.roofline, plan.topology.chip
    table = _table("\nPredicted time of a step", "", "amount a chip", "rate", "time")
    work = plan.work
    table.add_row("compute", f"{work.flops:.4g} FLOP", f"{chip.flops.value / 1e12:.0f} TFLOP/s",
                  milliseconds(r.compute))  # fmt: skip
    source = "HBM" if plan.compiled and plan.compiled.module else "HBM (formula)"
    table.add_row(source, gigabytes(work.hbm_bytes), f"{chip.bandwidth.value / 1e9:,.0f} GB/s",
                  milliseconds(r.hbm))  # fmt: skip
    moved = sum(c.bytes * c.count for c in work.collectives)
    table.add_row("interconnect", gigabytes(moved), f"{chip.link.value / 1e9:.0f} GB/s a link",
                  milliseconds(r.interconnect))  # fmt: skip
    if r.network:
        table.add_row("data-centre network", "", f"{chip.network.value / 1e9:.3g} GB/s",
                      milliseconds(r.network))  # fmt: skip
    table.add_section()
    table.add_row(
        f"roofline: max(compute, HBM) + exposed {milliseconds(r.exposed)}; bound: {r.bound}",
        "", f"MFU {percent(plan.mfu(r.step))}", milliseconds(r.step),
    )  # fmt: skip
    if plan.compiler_step is not None:
        cycles = plan.compiled.module.cycles
        kernels = f" + kernels {milliseconds(plan.kernel_seconds)}" if plan.kernel_seconds else ""
        table.add_row(
            f"compiler: {cycles / 1e6:,.0f} M cycles{kernels} + exposed",
            "", f"MFU {percent(plan.mfu(plan.compiler_step))}", milliseconds(plan.compiler_step),
        )  # fmt: skip
    table.add_row("images a second", "", "",
                  f"{plan.config.train.batch_size / plan.step_seconds:,.0f}")  # fmt: skip
    if plan.total_steps:
        days = plan.total_steps * plan.step_seconds / 86_400
        table.add_row("the recipe", f"{days:.2f} days", "",
                      f"{days * 24 * plan.topology.chips:,.0f} chip-hours")  # fmt: skip
    return table


def grouped(plan: Plan) -> list[tuple[str, str, int, int, float, bool]]:
    """Collectives by kind and axis: bytes of all, count, seconds, whether asynchronous."""
    sums: dict[tuple[str, str, bool], list[float]] = defaultdict(lambda: [0, 0, 0.0])
    for c, times in zip(plan.work.collectives, plan.collective_seconds, strict=True):
        entry = sums[_label(plan, c)]
        entry[0] += c.bytes * c.count
        entry[1] += c.count
        entry[2] += sum(times)
    rows = [(k, a, int(b), int(n), s, hidden) for (k, a, hidden), (b, n, s) in sums.items()]
    return sorted(rows, key=lambda row: -row[4])


def _label(plan: Plan, c: Collective) -> tuple[str, str, bool]:
    return c.kind, " x ".join(plan.axes(c)), c.asynchronous


def _collectives(plan: Plan) -> Table:
    known = plan.compiled is not None and plan.compiled.module is not None
    whose = "in the compiled step" if known else "by formula"
    table = _table(f"\nCollectives {whose}", "kind", "axis", "bytes a step", "count", "time", "")
    for kind, axis, size, count, seconds, hidden in grouped(plan):
        table.add_row(kind, axis, gigabytes(size), f"{count:,}", milliseconds(seconds),
                      "overlapped" if hidden else "waits")  # fmt: skip
    return table


def _notes(plan: Plan, console: Console) -> None:
    notes = []
    if not plan.total_steps:
        notes.append(plan.examples_source)
    if plan.compiled is None:
        notes.append(
            "Nothing was compiled: memory, traffic and collectives are formulas, and the time is a "
            "bound that no program reaches."
        )
    elif plan.compiled.module is None:
        notes.append(f"{plan.compiled.note}; traffic and collectives are formulas.")
    else:
        loops = plan.compiled.module.unknown_loops
        if loops:
            notes.append(
                f"{len(loops)} loops of unknown length (the rejection sampling of random numbers "
                f"has such) count once."
            )
        if plan.compiled.module.kernels:
            notes.append(KERNEL_CAVEAT)
    chip = plan.topology.chip
    if chip.clock is not None and plan.compiler_step is not None:
        notes.append(
            f"Cycles are the compiler's estimate at {chip.clock.value / 1e9:.2f} GHz "
            f"({chip.clock.source}); nothing was executed."
        )
    if setting(plan.config)["dtype"] not in ("bfloat16", "float16"):
        notes.append("The peak is that of bfloat16; this config computes in another dtype.")
    notes.append("Latencies, input, evaluation and checkpoints are in no figure.")
    console.print()
    for note in notes:
        console.print(f"- {note}", highlight=False)
    figures = {
        name: getattr(chip, name) for name in ("flops", "memory", "bandwidth", "link", "network")
    }
    for name, figure in figures.items():
        console.print(f"- {name}: {figure.source}", highlight=False)


def ranking(plans: Sequence[Plan], failures: Sequence[str], console: Console) -> None:
    """Prints what a search found."""
    table = Table(
        "batch", "remat", "attention", "mesh", "needs", "step", "MFU", "images/s", "chip-hours",
        title="\nWhat fits, the fastest an image first", title_justify="left", box=None,
        width=WIDTH,
    )  # fmt: skip
    for plan in plans:
        what, mesh = setting(plan.config), plan.mesh
        hours = ""
        if plan.total_steps:
            hours = f"{plan.total_steps * plan.step_seconds * plan.topology.chips / 3600:,.0f}"
        table.add_row(
            f"{what['batch']:,}", what["remat"], what["attention_implementation"],
            ", ".join(f"{a} {n}" for a, n in mesh.items() if n > 1),
            gigabytes(plan.needed), milliseconds(plan.step_seconds),
            percent(plan.mfu(plan.step_seconds)),
            f"{plan.config.train.batch_size / plan.step_seconds:,.0f}", hours,
        )  # fmt: skip
    console.print(table)
    if len({plan.config.train.batch_size for plan in plans}) > 1:
        console.print("Another batch is another recipe: learning rate and steps follow from it.")
    for failure in failures:
        console.print(f"failed: {failure}", markup=False, highlight=False)
