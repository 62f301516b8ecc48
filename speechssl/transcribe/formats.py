"""The formats in which a transcript is written."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from speechssl.transcribe.inputs import InputFile
    from speechssl.transcribe.transcript import Transcript


class Format(StrEnum):
    """What is written of a recording."""

    TXT = "txt"
    JSON = "json"
    SRT = "srt"
    VTT = "vtt"
    TSV = "tsv"
    HTML = "html"


def render(
    file: "InputFile", transcript: "Transcript", output_format: Format, words: bool, letters: bool, folder: Path
) -> str:
    """Return what a file in the folder holds."""
    match output_format:
        case Format.TXT:
            return f"{transcript.text}\n"
        case Format.JSON:
            return f"{transcript.to_json(file.path, letters)}\n"
        case Format.SRT:
            return transcript.to_srt(words)
        case Format.VTT:
            return transcript.to_vtt(words)
        case Format.TSV:
            return transcript.to_tsv(words)
        case Format.HTML:
            from speechssl.transcribe.page import render_page

            return render_page(file.path, transcript, folder)
