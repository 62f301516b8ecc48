"""Make the corpus from the Debian packages of the Asterisk prompts: audio, table of clips, manifests.

    python make_corpus.py [FOLDER_OF_DEBS] [--out FOLDER]

Without a folder the ten packages are fetched with `apt-get download`. Needs `dpkg-deb`, and the extra `corpus`
(PyAV with libopus, num2words). The table and the manifests come out the same every time, the audio equal within the
codec's tolerance.
"""

import argparse
import gzip
import statistics
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from prepare import COLUMNS, SAMPLE_RATE, write_manifests
from recordings import Samples, decode, encode, pauses
from splits import group_names, split_groups
from transcripts import UncertainReadingError, comparable, is_sound, normalize

from speechssl.errors import SpeechSSLError
from speechssl.files import write_text_file
from speechssl.terminal import exit_on_error, print_status

VOICES = {  # language: (folder of the sounds, speaker)
    "en": ("en_US_f_Allison", "allison_smith"),
    "es": ("es_MX_f_Allison", "allison_smith"),
    "fr": ("fr_CA_f_June", "june_wallack"),
    "it": ("it_IT_m_Carlo", "carlo_flora"),
    "ru": ("ru_RU_f_IvrvoiceRU", "ivrvoice_ru"),
}
MAX_LABELLED_SECONDS = 25.0  # longer clips serve without their text
MIN_RATED_LETTERS = 20  # the pace of shorter texts says little about whether they fit
PACE_RANGE = (0.65, 1.42)  # letters a second of a clip, by its language's median; beyond it text and speech differ


@dataclass
class Prompt:
    """Hold a clip on its way into the corpus."""

    language: str
    prompt: str
    samples: Samples
    source_text: str
    text: str | None = None
    note: str = ""  # why there is no text
    comparable: str = ""
    group: str = ""
    part: str = ""
    start: int = 0

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE

    @property
    def is_train_only(self) -> bool:
        """Whether the clip must be in train: a letter tests little, an overlong clip would be lost elsewhere."""
        is_letter = self.language == "en" and len(self.text or "") == 1
        return is_letter or self.seconds > MAX_LABELLED_SECONDS


def unpack(debs: Path | None, folder: Path) -> None:
    """Unpack the ten packages into a folder, fetching them first if there is no folder of them."""
    if debs is None:
        debs = folder / "debs"
        debs.mkdir()
        names = [f"asterisk-core-sounds-{language}{kind}" for language in VOICES for kind in ("", "-g722")]
        run("apt-get", "download", *names, folder=debs)
    for language in VOICES:
        for kind in ("", "-g722"):
            pattern = f"asterisk-core-sounds-{language}{kind}_*.deb"
            found = sorted(debs.glob(pattern))
            if len(found) != 1:
                raise SpeechSSLError(f"{debs}: expected one package {pattern}, found {len(found)}")
            run("dpkg-deb", "-x", str(found[0].resolve()), ".", folder=folder)


def run(*command: str, folder: Path) -> None:
    """Run a program in a folder; its output goes to stderr."""
    try:
        subprocess.run(command, cwd=folder, check=True, stdout=2)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SpeechSSLError(f"{' '.join(command[:2])}: expected to succeed, found: {error}") from None


def read_texts(folder: Path, language: str) -> dict[str, set[str]]:
    """Read the texts of a language's prompts; an id may have none or, by a slip, several."""
    name = f"core-sounds-{language}.txt.gz"
    path = folder / "usr/share/doc" / f"asterisk-core-sounds-{language}" / name
    texts: dict[str, set[str]] = defaultdict(set)
    for line in gzip.decompress(path.read_bytes()).decode("utf-8-sig").splitlines():
        prompt, colon, text = line.lstrip("\ufeff").partition(":")
        if colon and text.strip() and not line.startswith(";"):
            texts[prompt.strip().lower()].add(text.strip())
    return texts


def read_prompts(folder: Path, language: str) -> Iterator[Prompt]:
    """Read the recordings of a language in the order of their ids, with their texts."""
    sounds = folder / "usr/share/asterisk/sounds" / VOICES[language][0]
    texts = read_texts(folder, language)
    paths = {path.relative_to(sounds).with_suffix("").as_posix().lower(): path for path in sounds.rglob("*.g722")}
    for prompt, path in sorted(paths.items()):
        candidates = texts[prompt]
        yield Prompt(
            language,
            prompt,
            decode(path),
            source_text=next(iter(candidates)) if len(candidates) == 1 else "",
            note="" if len(candidates) == 1 else "several texts" if candidates else "no text",
        )


def select(prompts: Sequence[Prompt]) -> tuple[list[Prompt], Counter[tuple[str, str]]]:
    """Leave out what is no speech, and what might be a test sentence because no language has its text."""
    sounds = {prompt.prompt for prompt in prompts if is_sound(prompt.source_text)}
    with_text = {prompt.prompt for prompt in prompts if prompt.source_text}
    kept, dropped = [], Counter[tuple[str, str]]()
    for prompt in prompts:
        reason = None
        if not len(prompt.samples):
            reason = "empty file"
        elif prompt.prompt in sounds or prompt.prompt.startswith("silence/"):
            reason = "no speech"
        elif prompt.prompt not in with_text:
            reason = "no text in any language"
        if reason:
            dropped[prompt.language, reason] += 1
        else:
            kept.append(prompt)
    return kept, dropped


def label(prompts: Sequence[Prompt]) -> None:
    """Give each clip its normalized text, or a note why it has none."""
    for prompt in prompts:
        if prompt.source_text:
            prompt.comparable = comparable(prompt.source_text, prompt.language)
            try:
                prompt.text = normalize(prompt.source_text, prompt.language)
            except UncertainReadingError as error:
                prompt.note = str(error)
    for language in VOICES:
        rated = [
            prompt
            for prompt in prompts
            if prompt.language == language and num_letters(prompt.text) >= MIN_RATED_LETTERS
        ]
        if not rated:
            continue
        usual = statistics.median(num_letters(prompt.text) / prompt.seconds for prompt in rated)
        for prompt in rated:
            pace = num_letters(prompt.text) / prompt.seconds / usual
            if not PACE_RANGE[0] <= pace <= PACE_RANGE[1]:
                prompt.text, prompt.note = None, "text does not fit the duration"
    for prompt in prompts:
        if prompt.text and prompt.seconds > MAX_LABELLED_SECONDS:
            prompt.text, prompt.note = None, "too long"


def num_letters(text: str | None) -> int:
    return len((text or "").replace(" ", ""))


def place(prompts: Sequence[Prompt]) -> tuple[list[Prompt], Counter[tuple[str, str]]]:
    """Group and split the clips, and lay them out in each language: train, dev, test, each in the order of ids."""
    groups: dict[str, list[Prompt]] = defaultdict(list)
    for prompt, name in zip(prompts, group_names(prompts), strict=True):
        prompt.group = name
        groups[name].append(prompt)
    parts = split_groups(groups)
    placed, dropped = [], Counter[tuple[str, str]]()
    for language in VOICES:
        start = 0
        for part in ("train", "dev", "test"):
            for prompt in prompts:
                if (prompt.language, parts[prompt.group]) != (language, part):
                    continue
                if part == "test" and not prompt.text:
                    dropped[language, f"test without a text ({prompt.note})"] += 1
                    continue
                prompt.part, prompt.start = part, start
                start += len(prompt.samples)
                placed.append(prompt)
    return placed, dropped


def write_table(prompts: Sequence[Prompt], path: Path) -> None:
    """Write the table of clips that `prepare.read_clips` reads."""
    lines = ["\t".join(COLUMNS)]
    for prompt in prompts:
        cells = {
            "language": prompt.language,
            "prompt": prompt.prompt,
            "group": prompt.group,
            "part": prompt.part,
            "path": f"{prompt.language}.opus",
            "start": prompt.start,
            "num_samples": len(prompt.samples),
            "speaker": VOICES[prompt.language][1],
            "pauses": " ".join(map(str, pauses(prompt.samples))),
            "text": prompt.text or "",
            "note": prompt.note,
        }
        lines.append("\t".join(str(cells[column]) for column in COLUMNS))
    write_text_file(path, "\n".join(lines) + "\n")


def make(debs: Path | None, out: Path) -> None:
    """Make the whole corpus, and report on stdout what was left out and why."""
    with tempfile.TemporaryDirectory() as folder:
        unpack(debs, Path(folder))
        prompts = [prompt for language in VOICES for prompt in read_prompts(Path(folder), language)]
    print_status(f"read {len(prompts)} recordings")
    kept, no_speech = select(prompts)
    label(kept)
    placed, unusable = place(kept)
    for (language, reason), count in sorted((no_speech + unusable).items()):
        print(f"left out\t{language}\t{count}\t{reason}")
    for (language, reason), count in sorted(
        Counter((clip.language, clip.note) for clip in placed if clip.note).items()
    ):
        print(f"without a label\t{language}\t{count}\t{reason}")
    out.mkdir(parents=True, exist_ok=True)
    for language in VOICES:
        clips = [clip.samples for clip in placed if clip.language == language]
        encode(np.concatenate(clips), out / f"{language}.opus")
        print_status(f"wrote {language}.opus: {len(clips)} clips")
    write_table(placed, out / "clips.tsv")
    write_manifests(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("debs", nargs="?", type=Path, help="folder of the ten .deb files (default: fetch them)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "corpus")
    arguments = parser.parse_args()
    with exit_on_error():
        make(arguments.debs, arguments.out)


if __name__ == "__main__":
    main()
