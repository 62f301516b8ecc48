"""An index of the pages to correct in a folder, those with the least confident words first."""

import html
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from speechssl.errors import ConfigError
from speechssl.terminal import escaped
from speechssl.transcribe.outputs import write_text
from speechssl.transcribe.page import THRESHOLDS, fill, quoted, read_page

INDEX = "index.html"

_MARK = '<meta name="generator" content="speechssl index">'


def write_index(folder: Path, names: Iterable[str]) -> None:
    """Write the index of the pages that exist, if there are several.

    Args:
        folder: Where it goes.
        names: Of pages and other files, by their paths from there.

    Raises:
        ConfigError: it cannot be written, or would replace another file.
    """
    index = folder / INDEX
    try:
        pages = {
            name: data
            for name in names
            if (folder / name).suffix == ".html"
            and (folder / name).exists()
            and (data := read_page((folder / name).read_text("utf-8", "replace")))
        }
        if len(pages) < 2:
            return
        if index.exists() and _MARK not in index.read_text("utf-8", "replace"):
            raise ConfigError(f"{index}: already exists and is no index of pages; rename it")
    except OSError as error:
        raise ConfigError(f"{error.filename or index}: {error.strerror or error}") from None
    write_text(index, _render(pages))


def _render(pages: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a page that links to others, those with the least confident words first.

    Args:
        pages: What they show, as `read_page` returns it, by their paths from the index's folder.
    """
    rows = sorted((_confidence(data), name, data) for name, data in pages.items())
    heads = (
        '<th>Recording<th class="number optional">Length<th class="number optional">Words<th class="number">Doubtful'
    )
    body = f"<h1>{len(rows)} transcripts to correct, the least certain first</h1>\n<table>\n"
    body += f'<thead><tr>{heads}<th class="number">Confidence</thead>\n<tbody>\n'
    body += "".join(_row(confidence, name, data) for confidence, name, data in rows)
    meaning = f"Confidence: the mean of the words. Doubtful: below {100 * THRESHOLDS[0]:.0f} %."
    body += f'</tbody>\n</table>\n<p class="quiet">{meaning}</p>\n'
    return fill(body, "Transcripts to correct", _MARK)


def _row(confidence: float, name: str, data: Mapping[str, Any]) -> str:
    words = _words(data)
    num_doubtful = sum(word["confidence"] < THRESHOLDS[0] for word in words)
    minutes, seconds = divmod(round(data["seconds"]), 60)
    cells = (
        f'<td dir="auto"><a href="{html.escape(quoted(name))}">{html.escape(escaped(data["path"]))}</a>',
        f'<td class="number optional">{minutes}:{seconds:02}',
        f'<td class="number optional">{len(words)}',
        f'<td class="number">{num_doubtful}',
        f'<td class="number">{f"{100 * confidence:.0f} %" if words else "no words"}',
    )
    return f"<tr>{''.join(cells)}\n"


def _confidence(data: Mapping[str, Any]) -> float:
    """Return the mean confidence of the words; no words may be as wrong as doubtful ones."""
    words = _words(data)
    return sum(word["confidence"] for word in words) / len(words) if words else 0.0


def _words(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [word for segment in data["segments"] for word in segment["words"]]
