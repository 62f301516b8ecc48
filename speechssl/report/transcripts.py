"""Transcripts with their mistakes marked, letter by letter."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import jiwer

LEGEND = (
    "<p class=note>In a transcript, <mark class=changed>wrong letters</mark> and <ins>letters too many</ins> are "
    "underlined, <del>missing letters</del> struck through.</p>"
)


def choose_samples(utterances: Sequence[dict[str, Any]], number: int) -> list[int]:
    """Return the positions of utterances from the best to the worst, evenly over their character error rates."""

    def rate(index: int) -> float:
        counts = utterances[index]["characters"]
        edits = counts["substitutions"] + counts["deletions"] + counts["insertions"]
        return float(edits / max(counts["reference_length"], 1))

    spoken = [index for index, utterance in enumerate(utterances) if utterance["reference"]]
    ranked = sorted(spoken or range(len(utterances)), key=lambda index: (rate(index), index))
    if len(ranked) <= number:
        return ranked
    return [ranked[round(place * (len(ranked) - 1) / (number - 1))] for place in range(number)]


def mark(reference: str, hypothesis: str) -> str:
    """Return a transcript as HTML with its differences from the reference marked."""
    if not reference:
        return f"<ins>{escape(hypothesis)}</ins>" if hypothesis else "<i>nothing</i>"
    if not hypothesis:
        return f"<del>{escape(reference)}</del>"
    return "".join(_pieces(reference, hypothesis))


def _pieces(reference: str, hypothesis: str) -> Iterator[str]:
    for chunk in jiwer.process_characters(reference, hypothesis).alignments[0]:
        before = escape(reference[chunk.ref_start_idx : chunk.ref_end_idx])
        after = escape(hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx])
        if chunk.type == "equal":
            yield after
        elif chunk.type == "substitute":
            yield f'<mark class=changed title="instead of {before}">{_visible(after)}</mark>'
        elif chunk.type == "insert":
            yield f"<ins>{_visible(after)}</ins>"
        else:
            yield f"<del>{_visible(before)}</del>"


def _visible(text: str) -> str:
    """Show spaces, which would be marked unseen."""
    return text.replace(" ", "␣")
