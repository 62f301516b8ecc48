"""Small pieces of HTML that the sections of a report are made of."""

from collections.abc import Iterable, Sequence
from html import escape

from speechssl.report.svg import marker


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Return a table of cells that are HTML already; the columns ``numbers`` are aligned to the right."""

    def kind(place: int) -> str:
        return " class=number" if place in numbers else ""

    def row(cells: Sequence[str]) -> str:
        named = zip(head, cells, strict=True)  # the name is shown beside each cell where the page is narrow
        parts = (
            f'<td{kind(place)} data-name="{name}"><span>{cell}</span></td>' for place, (name, cell) in enumerate(named)
        )
        return f"<tr>{''.join(parts)}</tr>"

    heading = "".join(f"<th{kind(place)}>{name}</th>" for place, name in enumerate(head))
    body = "".join(map(row, rows))
    return f"<div class=table><table><thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table></div>"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Return names with their values, which are plain texts."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>' for name, value in pairs)}</dl>"


def section(title: str, name: str, content: str) -> str:
    """Return a section, or nothing if it has no content."""
    return f"<section id={name}><h2>{escape(title)}</h2>{content}</section>" if content else ""


def sample_of_line(style: int) -> str:
    """Return a run's line with its marker, for a legend."""
    path = f'<path class="line strong s{style % 8}" d="M0 8H40"/>'
    mark = f'<path class="mark s{style % 8}" d="{marker(style, 20, 8)}"/>'
    return f'<svg viewBox="0 0 40 16" aria-hidden=true>{path}{mark}</svg>'


def duration(seconds: float) -> str:
    """Return "3 h 05 min", or "4 min 10 s" below an hour."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole // 60 % 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s"
