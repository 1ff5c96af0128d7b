"""A claim beside what was measured, and how a list of them is shown."""

import dataclasses
from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table

COLUMNS = ("claim", "closed form", "measured", "tolerance", "holds")


@dataclasses.dataclass(frozen=True)
class Claim:
    """One statement and the largest deviation from it over everything that was run.

    Attributes:
      part: which figure it belongs to.
      text: what is said.
      form: the closed form; what is measured is the distance of its two sides, a ratio's to 1.
      measured: the largest distance.
      tolerance: what it may be.
    """

    part: str
    text: str
    form: str
    measured: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """False for nan too."""
        return self.measured <= self.tolerance

    def cells(self) -> tuple[str, ...]:
        """Texts under :data:`COLUMNS`."""
        return (
            self.text,
            self.form,
            f"{self.measured:.1e}" if self.measured else "0",
            f"{self.tolerance:g}",
            "yes" if self.holds else "no",
        )

    def record(self) -> dict:
        """For JSON."""
        return dataclasses.asdict(self) | {"holds": bool(self.holds)}


def verdict_table(claims: Iterable[Claim], title: str) -> Table:
    """The verdicts for the terminal, a section a part."""
    table = Table(*COLUMNS, title=title)
    part = None
    for claim in claims:
        if part not in (None, claim.part):
            table.add_section()
        part = claim.part
        *cells, holds = claim.cells()
        colour = "green" if claim.holds else "bold red"
        table.add_row(*map(escape, cells), f"[{colour}]{holds}[/]")
    return table
