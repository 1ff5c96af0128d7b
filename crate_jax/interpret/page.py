"""A report as one HTML page that carries its figures and needs no server, script or network."""

import base64
import dataclasses
import html
import os
import pathlib
from collections.abc import Sequence

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
       color: #1b1f24; background: #fff }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
img { max-width: 100%; height: auto }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #d8dee4 }
th { border-bottom: 2px solid #1b1f24 }
th:first-child, td:first-child { text-align: left }
p.note { color: #57606a; max-width: 60rem }
"""


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under a title.

    Attributes:
      title: above it.
      columns: heads.
      rows: one text a column each.
      note: below it: what is shown, in which units.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG under a title; ``note`` says below it what to see."""

    title: str
    path: pathlib.Path
    note: str = ""


def write_page(
    path: str | pathlib.Path, title: str, parts: Sequence[str | Table | Picture]
) -> None:
    """Writes a page; an earlier one stays whole until the new one is.

    Args:
      path: of the ``.html``.
      title: of the page.
      parts: from top to bottom; a string is a paragraph.
    """
    body = "\n".join(_render(part) for part in parts)
    text = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    )
    path = pathlib.Path(path)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _render(part: str | Table | Picture) -> str:
    if isinstance(part, str):
        return f"<p>{html.escape(part)}</p>"
    body = _table(part) if isinstance(part, Table) else _picture(part)
    note = f'<p class="note">{html.escape(part.note)}</p>' if part.note else ""
    return f"<section><h2>{html.escape(part.title)}</h2>\n{body}\n{note}</section>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in table.rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _picture(picture: Picture) -> str:
    data = base64.b64encode(pathlib.Path(picture.path).read_bytes()).decode()
    return f'<img alt="{html.escape(picture.title)}" src="data:image/png;base64,{data}">'
