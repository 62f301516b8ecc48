"""ELAN's annotations (.eaf)."""

import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from urllib.parse import unquote
from xml.etree.ElementTree import Element, ParseError, fromstring

from speechssl.data.labels.tiers import Span, Tier
from speechssl.errors import ManifestError


def read_elan(file: Path) -> tuple[list[Tier], tuple[str, ...]]:
    """Return the tiers, and what the recording is called: by the file's media descriptors, and as the file itself.

    Raises:
        ManifestError: the file cannot be read or is of another kind.
    """
    try:
        content = file.read_bytes()
        # No annotation file defines entities, of which a few lines can keep a parser busy for days. In every encoding
        # that it knows these are bytes of ASCII, but for zeros.
        if b"<!DOCTYPE" in content.replace(b"\0", b""):
            raise ValueError("found a DOCTYPE")
        document = fromstring(content)
        if document.tag != "ANNOTATION_DOCUMENT":
            raise ValueError(f"expected an ANNOTATION_DOCUMENT, found {document.tag}")
        header = document.find("HEADER")
        media = [] if header is None else header.findall("MEDIA_DESCRIPTOR")
        # The sound itself before videos; all are aligned to its beginning.
        media.sort(key=lambda descriptor: not (descriptor.get("MIME_TYPE") or "").startswith("audio"))
        shift = int(media[0].get("TIME_ORIGIN") or 0) if media else 0
        slots = {
            slot.get("TIME_SLOT_ID"): (int(value) + shift) / 1000
            for slot in document.iterfind("TIME_ORDER/TIME_SLOT")
            if (value := slot.get("TIME_VALUE")) is not None
        }
        annotations = {
            annotation.get("ANNOTATION_ID", ""): annotation for annotation in document.iterfind("TIER/ANNOTATION/*")
        }
        tiers = [_make_tier(file, tier, annotations, slots) for tier in document.iterfind("TIER")]
    except OSError as error:
        raise ManifestError(f"{file}: {error.strerror or error}") from None
    except (ParseError, ValueError, LookupError) as error:
        raise ManifestError(f"{file}: expected ELAN's annotations: {error}") from None
    urls = [
        url for descriptor in media for name in ("RELATIVE_MEDIA_URL", "MEDIA_URL") if (url := descriptor.get(name))
    ]
    named = [re.sub("^(file:/*(?=[A-Za-z]:)|file://|\\./)", "", unquote(url)) for url in urls]
    # The name alone, as the folder is often that of another machine.
    bare = [PureWindowsPath(name).name for name in named]
    return tiers, tuple(dict.fromkeys([*named, *bare, file.stem]))


def _make_tier(
    file: Path, tier: Element, annotations: Mapping[str, Element], slots: Mapping[str | None, float]
) -> Tier:
    name = tier.get("TIER_ID", "")
    spans: dict[tuple[float | None, float | None], Span] = {}
    for annotation in tier.iterfind("ANNOTATION/*"):
        start, end = _times(annotation, annotations, slots)
        text = annotation.findtext("ANNOTATION_VALUE") or ""
        before = spans.get((start, end)) if start is not None else None
        if before is not None:  # words of one sentence, which has the times
            spans[start, end] = Span(before.where, f"{before.text} {text}", start, end)
        else:
            where = f"{file}: {annotation.get('ANNOTATION_ID')} of tier {name!r}"
            spans[(start, end) if start is not None else (None, -len(spans))] = Span(where, text, start, end)
    speaker = tier.get("PARTICIPANT") or name.partition("@")[2] or None
    return Tier(name, list(spans.values()), tier.get("LINGUISTIC_TYPE_REF"), speaker, tier.get("PARENT_REF") is None)


def _times(
    annotation: Element, annotations: Mapping[str, Element], slots: Mapping[str | None, float]
) -> tuple[float | None, float | None]:
    """Return when an annotation, or the one that it belongs to, starts and ends."""
    seen = set()
    while (parent := annotation.get("ANNOTATION_REF")) is not None and parent not in seen:
        seen.add(parent)
        annotation = annotations[parent]
    return slots.get(annotation.get("TIME_SLOT_REF1")), slots.get(annotation.get("TIME_SLOT_REF2"))
