"""A language of Common Voice in miniature: release 24's files, clips as its server makes them, and what is wrong."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
import librosa
import numpy as np
import numpy.typing as npt
import soundfile
from miniature import Speech, speech

RELEASE = "cv-corpus-24.0-2025-12-05"
COLUMNS = (
    *("client_id", "path", "sentence_id", "sentence", "sentence_domain", "up_votes", "down_votes"),
    *("age", "gender", "accents", "variant", "locale", "segment"),
)
NUM_TRAIN, NUM_DEV, NUM_TEST = 14, 3, 3
UNCOMMON = set("jxz'")  # left out, so that every letter of train is in two texts at least


def make_tree(folder: Path) -> dict[str, str]:
    """Make the language's folder; the settings for run.sh, by which a letter must be in two texts."""
    make_language(folder / RELEASE / "en")
    return {"CORPUS": str(folder / RELEASE / "en"), "MIN_COUNT": "2"}


def client_id(speaker: str) -> str:
    """128 hexadecimal digits; those of ann and bob begin alike."""
    digits = hashlib.sha512(speaker.encode()).hexdigest()
    return client_id("ann")[:11] + digits[11:] if speaker == "bob" else digits


def clip(name: str) -> str:
    """The file of a clip."""
    return f"common_voice_en_{name}.mp3"


@dataclass(frozen=True)
class Line:
    """A line of a list; the name of its clip is without what all clips have in common."""

    name: str
    speaker: str
    sentence: str
    locale: str = "en"

    def __str__(self) -> str:
        sentence_id = hashlib.sha256(self.sentence.encode()).hexdigest()
        values = (client_id(self.speaker), clip(self.name), sentence_id, self.sentence, "", "2", "0", "", "", "", "")
        return "\t".join((*values, self.locale, ""))


def make_language(folder: Path) -> None:
    """Make the clips and the lists, all the oddities among them."""
    (folder / "clips").mkdir(parents=True)
    clips = [one for one in speech(40, seconds=(2.0, 4.0)) if not UNCOMMON & set(one.text)]
    ordinary = {
        **{f"train{n}": clips[n] for n in range(NUM_TRAIN)},
        **{f"dev{n}": clips[NUM_TRAIN + n] for n in range(NUM_DEV)},
        **{f"test{n}": clips[NUM_TRAIN + NUM_DEV + n] for n in range(NUM_TEST)},
    }
    for name, one in ordinary.items():
        write_clip(folder, name, one.samples)
    lists = {"train": _train(folder, ordinary, clips[-1]), **_held_out(folder, ordinary, clips[-2])}
    lists |= _others(folder, clips[-4:], [line for lines in lists.values() for line in lines])
    for name, lines in lists.items():
        write_list(folder / f"{name}.tsv", [str(line) for line in lines])
    damage(folder / "train.tsv")
    _write_what_nobody_reads(folder, ordinary)


def write_list(file: Path, lines: list[str], columns: tuple[str, ...] = COLUMNS) -> None:
    """Write a list with the names of its columns."""
    file.write_text("".join(f"{line}\n" for line in ("\t".join(columns), *lines)), "utf-8")


def damage(file: Path) -> None:
    """Add lines that cannot be used: a column less, one more, none, no speaker, no path, a path elsewhere, Latin-1."""
    good = str(Line("train0", "ann", "Bad."))
    bad = [
        good.rpartition("\t")[0],
        f"{good}\t",
        "",
        good.replace(client_id("ann"), ""),
        good.replace(clip("train0"), ""),
    ]
    bad.append(good.replace(clip("train0"), f"../{clip('train0')}"))
    with file.open("ab") as output:
        output.write("".join(f"{line}\n" for line in bad).encode())
        output.write(good.replace("Bad.", "Café.").encode("latin-1") + b"\n")


def write_clip(folder: Path, name: str, samples: npt.NDArray[np.float32], *, states_length: bool = False) -> None:
    """Write 16 kHz samples as MP3: through a pipe at 32 kHz, as the server does, or at 48 kHz with a stated length."""
    file = folder / "clips" / clip(name)
    if states_length:
        soundfile.write(file, librosa.resample(samples, orig_sr=16_000, target_sr=48_000), 48_000, format="MP3")
        return
    integers = np.int16(librosa.resample(samples, orig_sr=16_000, target_sr=32_000).clip(-1, 1) * 32767)
    with file.open("wb") as output, av.open(_Pipe(output), "w", format="mp3") as container:
        stream = container.add_stream("libmp3lame", rate=32_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(integers[None], format="s16", layout="mono")
        frame.sample_rate = 32_000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)


class _Pipe:
    """What cannot seek: FFmpeg does not go back to write the length at the start."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def write(self, data: bytes) -> int:
        return self.file.write(data)


def _train(folder: Path, clips: dict[str, Speech], spare: Speech) -> list[Line]:
    lines = [
        Line(f"train{n}", ("ann", "bob", "cem")[n % 3], f"{clips[f'train{n}'].text.capitalize()}.")
        for n in range(NUM_TRAIN)
    ]
    lines[0] = Line("train0", "ann", f'"{clips["train0"].text.upper()}!')  # closed nowhere
    lines[1] = Line("train1", "bob", f'"""{clips["train1"].text}"", he said."')
    lines[2] = Line("train2", "cem", lines[2].sentence, locale="")
    odd = {
        "digits": "Press 5 now.",
        "rare": "The café.",
        "empty_text": "",
        "marks_only": "…?!",
        "cut": "To reset your speaking volume to the default level",
        "of_dev": "The speaker is in dev.",
        "missing": "The clip is missing.",
        "empty": "The clip is empty.",
        "damaged": "The clip is no sound.",
        "tiny": "The clip is nearly empty.",
    }
    for name in ("digits", "rare", "empty_text", "marks_only", "of_dev"):
        write_clip(folder, name, spare.samples)
    write_clip(folder, "cut", spare.samples[:4800])
    write_clip(folder, "tiny", spare.samples[8000:8130], states_length=True)
    (folder / "clips" / clip("empty")).touch()
    (folder / "clips" / clip("damaged")).write_bytes(b"<?xml version='1.0'?><Error>AccessDenied</Error>" * 20)
    lines += [Line(name, "dev_speaker" if name == "of_dev" else "dan", sentence) for name, sentence in odd.items()]
    return [*lines, lines[3]]


def _held_out(folder: Path, clips: dict[str, Speech], spare: Speech) -> dict[str, list[Line]]:
    for name in ("dev_digits", "dev_of_test", "test_digits", "test_no_text"):
        write_clip(folder, name, spare.samples)
    write_clip(folder, "test_cut", spare.samples[:4800])
    write_clip(folder, "dev_tiny", spare.samples[8000:8130], states_length=True)
    write_clip(folder, "test0", clips["test0"].samples, states_length=True)
    dev = [Line(f"dev{n}", "dev_speaker", clips[f"dev{n}"].text) for n in range(NUM_DEV)]
    dev += [
        Line("dev_digits", "dev_speaker", "Press 7."),
        Line("dev_tiny", "dev_speaker", "The clip is nearly empty."),
        Line("dev_of_test", "test_speaker", "The speaker is in test."),
    ]
    test = [Line(f"test{n}", "test_speaker", clips[f"test{n}"].text) for n in range(NUM_TEST)]
    test += [Line("test_digits", "test_speaker", "Press 9 for the café."), Line("test_no_text", "test_speaker", '""')]
    test += [Line("test_cut", "test_speaker", "To reset your speaking volume to the default level")]
    return {"dev": dev, "test": test}


def _others(folder: Path, clips: list[Speech], split: list[Line]) -> dict[str, list[Line]]:
    names = ("validated0", "other0", "contested", "rejected")
    for name, one in zip(names, clips, strict=True):
        write_clip(folder, name, one.samples)
    for name in ("validated_of_test", "other_of_dev", "listed_nowhere"):
        write_clip(folder, name, clips[0].samples)
    validated = [Line("validated0", "ann", "A sentence that another has read."), Line("contested", "eve", "Contested.")]
    validated += [Line("validated_of_test", "test_speaker", "The speaker is in test.")]
    return {
        "validated": [*dict.fromkeys(split), *validated],
        "other": [Line("other0", "eve", ""), Line("other_of_dev", "dev_speaker", "The speaker is in dev.")],
        "invalidated": [Line("rejected", "ann", "Rejected."), Line("contested", "eve", "Contested.")],
    }


def _write_what_nobody_reads(folder: Path, clips: dict[str, Speech]) -> None:
    (folder / "README.md").write_text("# English\n", "utf-8")
    (folder / "reported.tsv").write_text("sentence_id\tsentence\tlocale\treason\n", "utf-8")
    (folder / "validated_sentences.tsv").write_text("sentence_id\tsentence\tsentence_domain\n", "utf-8")
    (folder / "unvalidated_sentences.tsv").write_text("sentence_id\tsentence\tsentence_domain\n", "utf-8")
    durations = [f"{clip(name)}\t{len(one.samples) // 16}" for name, one in clips.items()]
    write_list(folder / "clip_durations.tsv", durations, ("clip", "duration[ms]"))
