"""A page to hear and correct a transcript on: an HTML file that needs nothing but a browser."""

import base64
import hashlib
import html
import json
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

from speechssl.terminal import escaped
from speechssl.transcribe.transcript import Transcript

THRESHOLDS = (0.5, 0.8)
"""Words with a confidence below are shaded as doubtful, or as unsure."""

_MARGIN_SECONDS = 0.25  # kept of the pause at both ends of a segment, whose words begin and end inside their sound
_DATA_START, _DATA_END = '<script type="application/json" id="data">', "</script>"
_PAGE_MARK = '<meta name="generator" content="speechssl page">'
_SHELL = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
{mark}
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}</body>
</html>
"""


def render_page(path: str, transcript: Transcript, folder: Path) -> str:
    """Return the page of a transcript, which plays its recording and saves a table that `read_labels` reads.

    Args:
        path: The recording, as the table will call it; "-" is standard input, which cannot be played.
        transcript: Its times are those of the recording.
        folder: Where the page will lie: it finds the recording from there.
    """
    data = transcript.to_dict(path) | {
        "audio": None if path == "-" else f"./{quoted(os.path.relpath(path, folder))}",
        "spans": _spans(transcript),
        "thresholds": THRESHOLDS,
    }
    # Corrections that a browser keeps belong to this transcript.
    data["id"] = hashlib.sha256(json.dumps(data).encode()).hexdigest()[:16]
    # No text ends the element: HTML looks for nothing but <.
    content = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    script = _read("page_text.js") + _read("page.js")
    title = html.escape(escaped(path))
    doubtful, unsure = (round(100 * threshold) for threshold in THRESHOLDS)
    body = _read("page.html").format(title=title, doubtful=doubtful, unsure=unsure, confidences=data["confidences"])
    body += f"{_DATA_START}{content}{_DATA_END}\n<script>{script}</script>\n"
    # This script alone may run; the recording lies on a disk, or where the page was served from.
    policy = f"script-src {_source(script)}; media-src 'self' file:"
    return fill(body, title, _PAGE_MARK, policy)


def read_page(content: str) -> dict[str, Any] | None:
    """Return what a page shows, with the keys of `Transcript.to_dict`; None if this is no page of ours."""
    _, start, rest = content.partition(_DATA_START)
    if not start or _PAGE_MARK not in content:
        return None
    try:
        data: dict[str, Any] = json.loads(rest.partition(_DATA_END)[0])
    except ValueError:
        return None
    return data


def _spans(transcript: Transcript) -> Sequence[tuple[float, float]]:
    """Return where segments begin and end, with a part of the pauses around them, to hear and to train on."""
    segments = transcript.segments
    middles = [(before.end + after.start) / 2 for before, after in pairwise(segments)]
    bounds = pairwise([0.0, *middles, transcript.seconds]) if segments else ()
    return [
        (
            round(max(segment.start - _MARGIN_SECONDS, least), 3),
            round(max(min(segment.end + _MARGIN_SECONDS, most), segment.end), 3),
        )
        for segment, (least, most) in zip(segments, bounds, strict=True)
    ]


def quoted(path: str) -> str:
    """Return a path as a part of an address."""
    return quote(os.fsencode(path))


def fill(body: str, title: str, mark: str, policy: str = "") -> str:
    """Return a page around a body, which loads nothing but what the Content Security Policy adds."""
    style = _read("page.css")
    policy = f"default-src 'none'; style-src {_source(style)}; base-uri 'none'; form-action 'none'; {policy}"
    return _SHELL.format(policy=policy.removesuffix("; "), mark=mark, title=title, style=style, body=body)


def _source(content: str) -> str:
    """Return what allows exactly this content in a Content Security Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text("utf-8")
