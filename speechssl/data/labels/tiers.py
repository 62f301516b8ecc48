"""Labels with times in tiers: which of them hold what is said."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from speechssl.data.labels.label import Drop, Label, UnusableError, drop_unusable, make_span, single_spaced
from speechssl.errors import ManifestError


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a tier; ``start`` or ``end`` are None if the file does not place it."""

    where: str
    text: str
    start: float | None  # in seconds, as the end
    end: float | None


@dataclass(frozen=True)
class Tier:
    """A row of spans, of one speaker or of one kind of text."""

    name: str
    spans: Sequence[Span]
    kind: str | None = None  # what ELAN calls its linguistic type
    speaker: str | None = None
    is_independent: bool = True  # not a translation or gloss of another tier

    @property
    def names(self) -> tuple[str, ...]:
        """What it may be asked for by: "tx@Anna" is a "tx", "Anna - words" are "words"."""
        return self.name, self.kind or "", self.name.partition("@")[0], self.name.rpartition(" - ")[2]


def read_tiers(
    file: Path, tiers: Sequence[Tier], wanted: Sequence[str], paths: tuple[str, ...], drop: Drop
) -> Iterator[Label]:
    """Read the wanted tiers, or those that can only be meant: the independent ones, if all are of one kind.

    Raises:
        ManifestError: it is not clear which tiers hold what is said.
    """
    filled = [tier for tier in tiers if any(span.text.strip() for span in tier.spans)]
    if wanted:
        chosen = [tier for tier in filled if set(tier.names).intersection(wanted)]
        if not chosen:
            drop("file without the tier asked for", f"{file}: {_list(tiers)}")
    else:
        chosen = [tier for tier in filled if tier.is_independent]
        kinds = {tier.kind or tier.names[2] for tier in chosen}
        if len(kinds) > 1:
            advice = "name those with what is said (TIER=NAME,NAME)"
            raise ManifestError(f"{file}: expected tiers of one kind, found {_list(chosen)}: {advice}")
    for tier in chosen:
        for span in tier.spans:
            if span.text.strip():
                yield from drop_unusable(drop, span.where, partial(_make_label, span, paths, tier.speaker))


def _make_label(span: Span, paths: tuple[str, ...], speaker: str | None) -> Label:
    if span.start is None or span.end is None:
        raise UnusableError("times that make no span")
    return make_span(span.where, paths, single_spaced(span.text), span.start, span.end, speaker)


def _list(tiers: Sequence[Tier]) -> str:
    return ", ".join(f"{tier.name!r}" + (f" ({tier.kind})" if tier.kind else "") for tier in tiers) or "no tier"
