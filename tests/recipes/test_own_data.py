"""A folder of one's own: every form of labels, what is refused or dropped, and what is held out."""

import json
import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import miniature_own_data
import numpy as np
import pytest
import soundfile
from miniature import RECIPES, recipe_modules, run_recipe

from speechssl.data.manifest import Manifest, Utterance, read_manifest
from speechssl.data.recording import audio_info
from speechssl.data.unpack import unpack_manifests
from speechssl.errors import ManifestError

RECIPE = RECIPES / "own_data"
LABELLED = ("train", "dev", "test")
PRETRAIN = ("pretrain_train", "pretrain_dev")
COMMAND = "recording that a command makes, which is not run"


programs, held_out = recipe_modules("own_data", "prepare", "held_out")


def prepare(
    corpus: Path, out: Path, labels: Path | None = None, kept: Path | None = None, as_is: bool = False
) -> dict[str, Manifest]:
    programs.prepare(corpus, out, labels, kept, as_is)
    return {path.stem: read_manifest(path) for path in out.glob("*.tsv") if path.stem in (*LABELLED, *PRETRAIN)}


def labeled(manifests: dict[str, Manifest]) -> dict[tuple[str, float], tuple[str | None, str | None]]:
    """Text and speaker of every labeled utterance, by file name and start in seconds."""
    return {
        (Path(utterance.path).name, utterance.start / utterance.sample_rate): (utterance.text, utterance.speaker)
        for name in LABELLED
        for utterance in manifests[name]
    }


def dropped(out: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in (out / "dropped.tsv").read_text("utf-8").splitlines()[1:]:
        reason, what = row.split("\t")
        found.setdefault(reason, []).append(what)
    return found


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature's recordings, not to be changed."""
    folder = tmp_path_factory.mktemp("own") / "my recordings"
    miniature_own_data.make_recordings(folder)
    return folder


def expected(with_speakers: bool = True) -> dict[tuple[str, float], tuple[str, str | None]]:
    return {
        (Path(path).name, 0.0): (clip.text, miniature_own_data.speaker(path) if with_speakers else None)
        for path, clip in miniature_own_data.clips().items()
    }


def csv_table(folder: Path, recordings: Path) -> Path:
    lines = ['"Path","Sentence","age","Client_ID"']
    for path, clip in miniature_own_data.clips().items():
        lines.append(f'"{path}","""{clip.text.upper()}""!",7,{miniature_own_data.speaker(path)}')
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", "utf-8")
    return folder / "labels.csv"


def semicolons(folder: Path, recordings: Path) -> Path:
    lines = ["filename;transcription;speaker"]
    for path, clip in miniature_own_data.clips().items():
        lines.append(f"{recordings / path};{clip.text};{miniature_own_data.speaker(path)}")
    (folder / "labels.csv").write_text("\ufeff" + "\r\n".join(lines), "utf-8")
    return folder / "labels.csv"


def tsv_table(folder: Path, recordings: Path) -> Path:
    lines = ["speaker\taudio\ttranscript\tstart\tend"]
    for path, clip in miniature_own_data.clips().items():
        lines.append(f'{miniature_own_data.speaker(path)}\t{path}\t"{clip.text}\t0.0\t')  # no closing quotation mark
    (folder / "labels.tsv").write_text("\n".join(lines) + "\n", "utf-8")
    return folder / "labels.tsv"


def quoted_tsv(folder: Path, recordings: Path) -> Path:
    lines = ['"file"\t"text"\t"speaker"']
    for path, clip in miniature_own_data.clips().items():
        lines.append(f'"{path}"\t"{clip.text}"\t"{miniature_own_data.speaker(path)}"')
    (folder / "labels.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return folder / "labels.txt"


def json_lines(folder: Path, recordings: Path) -> Path:
    rows = [
        {"file_name": path, "text": clip.text, "speaker_id": miniature_own_data.speaker(path), "tags": [1]}
        for path, clip in miniature_own_data.clips().items()
    ]
    (folder / "labels.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows) + "\n", "utf-8")
    return folder / "labels.jsonl"


def nemo(folder: Path, recordings: Path) -> Path:
    """As NeMo writes them: paths from the manifest's own folder, durations rounded."""
    rows = []
    for path, clip in miniature_own_data.clips().items():
        seconds = int(len(clip.samples) / 160) / 100
        relative = os.path.relpath(recordings / path, folder)
        row = {"audio_filepath": relative, "duration": seconds, "text": clip.text, "offset": 0}
        rows.append(row | {"speaker": miniature_own_data.speaker(path)})
    (folder / "manifest.json").write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return folder / "manifest.json"


def json_array(folder: Path, recordings: Path) -> Path:
    lines = json_lines(folder, recordings).read_text("utf-8").split("\n\n")
    (folder / "labels.json").write_text(f"[\n{','.join(lines)}]", "utf-8")
    return folder / "labels.json"


def utf_16(folder: Path, recordings: Path) -> Path:
    file = semicolons(folder, recordings)
    file.write_bytes(file.read_text("utf-8-sig").encode("utf-16-le"))  # without a mark
    return file


def ljspeech(folder: Path, recordings: Path) -> Path:
    lines = [
        f"{Path(path).stem}|{clip.text.upper()} 5|{clip.text}" for path, clip in miniature_own_data.clips().items()
    ]
    (folder / "metadata.csv").write_text("\n".join(lines), "utf-8")
    return folder / "metadata.csv"


def timed(folder: Path, suffix: str, content: Callable[[str, str, float], str], encoding: str = "utf-8") -> Path:
    """Write a file of labels for each recording, in a folder of its own."""
    for path, clip in miniature_own_data.clips().items():
        file = (folder / "labels" / path).with_suffix(suffix)
        file.parent.mkdir(parents=True, exist_ok=True)
        seconds = len(clip.samples) / 16_000
        file.write_text(content(clip.text, miniature_own_data.speaker(path), seconds), encoding)
    return folder / "labels"


def vtt(folder: Path, recordings: Path) -> Path:
    return timed(folder, ".vtt", lambda text, who, end: f"WEBVTT\n\n00:00.000 --> 00:{end:06.3f}\n<v {who}>{text}\n")


def srt(folder: Path, recordings: Path) -> Path:
    return timed(folder, ".srt", lambda text, who, end: f"1\n00:00:00,0 --> 00:00:{end:06.3f}\n<i>{text}</i>\n")


def audacity(folder: Path, recordings: Path) -> Path:
    return timed(folder, ".txt", lambda text, who, end: f"0.000000\t{end:.6f}\t{text}\n\\\t10.0\t20.0\n")


def texts(folder: Path, recordings: Path) -> Path:
    return timed(folder, ".txt", lambda text, who, end: f"{text}\n")


def elan(folder: Path, recordings: Path) -> Path:
    return timed(
        folder,
        ".eaf",
        lambda text, who, end: (
            f"""<ANNOTATION_DOCUMENT><TIME_ORDER>
            <TIME_SLOT TIME_SLOT_ID="t1" TIME_VALUE="0"/><TIME_SLOT TIME_SLOT_ID="t2" TIME_VALUE="{round(1000 * end)}"/>
            </TIME_ORDER><TIER TIER_ID="t" PARTICIPANT="{who}"><ANNOTATION>
            <ALIGNABLE_ANNOTATION ANNOTATION_ID="a" TIME_SLOT_REF1="t1" TIME_SLOT_REF2="t2">
            <ANNOTATION_VALUE>{text}</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION></TIER>
            </ANNOTATION_DOCUMENT>"""
        ),
    )


def praat(folder: Path, recordings: Path) -> Path:
    return timed(
        folder,
        ".TextGrid",
        lambda text, who, end: (
            f'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n{end}\n<exists>\n1\n"IntervalTier"\n'
            f'"{who} - said"\n0\n{end}\n1\n0\n{end}\n"{text}"\n'
        ),
        "utf-16",
    )


def kaldi(folder: Path, recordings: Path) -> Path:
    clips = miniature_own_data.clips()
    files = {
        "wav.scp": [f"utt{n} {recordings / path}" for n, path in enumerate(clips)],
        "text": [f"utt{n}\t{clip.text.upper()}" for n, clip in enumerate(clips.values())],
        "utt2spk": [f"utt{n} {miniature_own_data.speaker(path)}" for n, path in enumerate(clips)],
    }
    for name, lines in files.items():
        (folder / name).write_text("\n".join(lines) + "\n", "utf-8")
    return folder


class TestForms:
    @pytest.mark.parametrize(
        "form",
        [
            *(csv_table, semicolons, tsv_table, quoted_tsv, json_lines, nemo, kaldi, json_array, utf_16, ljspeech),
            *(vtt, srt, audacity, texts, elan, praat),
        ],
    )
    def test_every_form_gives_the_same(
        self, recordings: Path, tmp_path: Path, form: Callable[[Path, Path], Path]
    ) -> None:
        manifests = prepare(recordings, tmp_path / "out", form(tmp_path, recordings))
        assert labeled(manifests) == expected(with_speakers=form not in (ljspeech, srt, audacity, texts))
        for name in LABELLED:  # whole recordings, rounded durations or not
            assert all(u.num_samples == audio_info(u.path).num_samples for u in manifests[name])
        assert not any("text" in reason or "row" in reason for reason in dropped(tmp_path / "out"))

    def test_text_files_beside(self, tmp_path: Path) -> None:
        corpus = tmp_path / "corpus"
        miniature_own_data.make_recordings(corpus)
        for path, clip in miniature_own_data.clips().items():
            (corpus / path).with_suffix(".txt").write_text(f"\ufeff{clip.text}.\n", "utf-8")
        (corpus / "radio" / "jingle.txt").write_bytes("später".encode("latin-1"))
        (corpus / "radio" / "contents.txt").write_text("of no recording", "utf-8")
        (corpus / "radio" / "show.txt").write_text(" \n", "utf-8")
        manifests = prepare(corpus, tmp_path / "out")
        assert labeled(manifests) == expected(with_speakers=False)
        assert [what.startswith(str(corpus / "radio/jingle.txt")) for what in dropped_texts(tmp_path / "out")] == [True]
        assert dropped(tmp_path / "out")["empty text"] == [str(corpus / "radio" / "show.txt")]
        manifests = prepare(corpus, tmp_path / "out", Path("none"))
        assert set(manifests) == set(PRETRAIN)
        assert not (tmp_path / "out" / "alphabet.tsv").exists()

    def test_spans_of_long_recordings(self, tmp_path: Path) -> None:
        corpus = tmp_path / "corpus"
        texts = write_long_recordings(corpus, number=5)
        lines = [f"rec{n}-{i} rec{n} {start} {end}" for n, i, start, end, _ in texts]
        lines[-1] = lines[-1].rpartition(" ")[0] + " -1"
        lines.append("odd rec0 8.0 7.0")
        data = tmp_path / "data"
        data.mkdir()
        (data / "segments").write_text("\n".join(lines) + "\nshort rec1\n", "utf-8")
        (data / "wav.scp").write_text("".join(f"rec{n} {corpus}/rec{n}.wav\n" for n in range(5)), "utf-8")
        (data / "text").write_text(
            "".join(f"rec{n}-{i} {text}\n" for n, i, _, _, text in texts) + "odd a\nshort b\nlost c\n", "utf-8"
        )
        manifests = prepare(corpus, tmp_path / "out", data)
        assert labeled(manifests) == {(f"rec{n}.wav", start): (text, None) for n, _, start, _, text in texts}
        ends = {(Path(u.path).stem, u.start + u.num_samples) for name in LABELLED for u in manifests[name]}
        assert ("rec4", 20 * 16_000) in ends
        assert ("rec3", round(19.5 * 16_000)) in ends
        assert dropped(tmp_path / "out") == {
            "times that make no span": [f"{data}/text:{len(texts) + 1}"],
            "text without a segment": [f"{data}/text:{len(texts) + 2}: short", f"{data}/text:{len(texts) + 3}: lost"],
        }

    def test_commands_of_kaldi_are_not_run(self, recordings: Path, tmp_path: Path) -> None:
        scp = kaldi(tmp_path, recordings) / "wav.scp"
        lines = scp.read_text("utf-8").splitlines()
        run = tmp_path / "was run"
        scp.write_text("\n".join([f"utt0 touch '{run}' |", "utt1 sph2pipe -f wav a.sph |", *lines[2:]]), "utf-8")
        manifests = prepare(recordings, tmp_path / "out", tmp_path)
        assert set(expected()) - set(labeled(manifests)) == {("00.wav", 0.0), ("01.wav", 0.0)}
        assert [what.split(": ")[0] for what in dropped(tmp_path / "out")[COMMAND]] == [f"{scp}:1", f"{scp}:2"]
        scp.write_text("\n".join(f"utt{n} sox a.wav -t wav - |" for n in range(20)), "utf-8")
        with pytest.raises(ManifestError, match=r"wav\.scp: expected the paths of recordings, found commands only"):
            prepare(recordings, tmp_path / "out", tmp_path)
        assert not run.exists()


def dropped_texts(out: Path) -> list[str]:
    return dropped(out)["text that cannot be read"]


def write_long_recordings(corpus: Path, number: int) -> list[tuple[int, int, float, float, str]]:
    """Recordings of 20 s, each with four spans: (recording, span, start, end, text)."""
    corpus.mkdir()
    generator = np.random.default_rng(0)
    for n in range(number):
        soundfile.write(corpus / f"rec{n}.wav", generator.normal(0, 0.1, 20 * 16_000), 16_000)
    words = "the quick brown fox jumps over the lazy dog"
    return [(n, i, 5.0 * i, 5.0 * i + 4.5, f"{words} {'ab'[n % 2]}") for n in range(number) for i in range(4)]


class TestRefusals:
    @pytest.mark.parametrize(
        ("content", "found"),
        [
            (b"a.wav hello\nb.wav hi\n", r"found 'a\.wav hello'"),
            (b"id,text\n1,hello\n", "found 'id,text'"),
            (b"", "found ''"),
        ],
    )
    def test_an_unknown_form(self, recordings: Path, tmp_path: Path, content: bytes, found: str) -> None:
        (tmp_path / "labels.csv").write_bytes(content)
        with pytest.raises(ManifestError, match=rf"labels\.csv: expected labels \(a csv or tsv .* Kaldi .*, {found}"):
            prepare(recordings, tmp_path / "out", tmp_path / "labels.csv")

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (
                "path,text\na.wav,a\nb.wav,spät\n".encode("cp1252"),
                ":3: expected UTF-8 or UTF-16, found the byte 0xe4: ",
            ),
            (b"\x89PNG\x00" + b"\xff" * 200_000, ":1: expected UTF-8 or UTF-16, found the byte 0x89: "),
            (b'[{"path": "a.wav", "text": "a"}', ": expected a JSON array of labels: "),
        ],
    )
    def test_what_cannot_be_read_is_refused_as_a_whole(
        self, recordings: Path, tmp_path: Path, content: bytes, expected: str
    ) -> None:
        (tmp_path / "labels.csv").write_bytes(content)
        with pytest.raises(ManifestError, match=f"labels.csv{expected}"):
            prepare(recordings, tmp_path / "out", tmp_path / "labels.csv")

    def test_missing_labels(self, recordings: Path, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match=r"none\.csv: expected labels \(a csv .*, found none"):
            prepare(recordings, tmp_path / "out", tmp_path / "none.csv")
        (tmp_path / "folder").mkdir()
        with pytest.raises(ManifestError, match=r"folder: expected labels .*, found a folder without any"):
            prepare(recordings, tmp_path / "out", tmp_path / "folder")
        (tmp_path / "folder" / "wav.scp").write_text("a a.wav\n", "utf-8")
        with pytest.raises(ManifestError, match=r"folder/text: expected a file, found none"):
            prepare(recordings, tmp_path / "out", tmp_path / "folder")

    def test_no_recordings(self, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match=r"CORPUS=.*nowhere: expected a folder with recordings, found none"):
            prepare(tmp_path / "nowhere", tmp_path / "out")
        (tmp_path / "talk.wav").touch()
        with pytest.raises(ManifestError, match=r"talk\.wav: expected a folder with recordings, found a file"):
            prepare(tmp_path / "talk.wav", tmp_path / "out")
        (tmp_path / "empty").mkdir()
        with pytest.raises(ManifestError, match=r"CORPUS=.*empty: expected recordings .*, found none"):
            prepare(tmp_path / "empty", tmp_path / "out")

    def test_texts_of_two_recordings(self, tmp_path: Path) -> None:
        texts = write_long_recordings(tmp_path / "corpus", number=2)
        lines = [f"rec{n}.wav,{start},{end},{text}" for n, _, start, end, text in texts]
        (tmp_path / "labels.csv").write_text("\n".join(["path,start,end,text", *lines, "x.wav,,,a"]), "utf-8")
        with pytest.raises(ManifestError) as caught:
            prepare(tmp_path / "corpus", tmp_path / "out", tmp_path / "labels.csv")
        assert "expected usable texts of 3 recordings or more" in str(caught.value)
        assert "found 2: " in str(caught.value)
        assert "says line by line: 1 text of a recording that is missing (LABELS=none" in str(caught.value)
        [missing] = dropped(tmp_path / "out")["text of a recording that is missing"]
        assert missing.startswith(f"{tmp_path}/labels.csv:{len(lines) + 2}: 'x.wav' not in {tmp_path}/corpus, ")

    def test_what_was_left_out_is_written_when_nothing_is_left(self, recordings: Path, tmp_path: Path) -> None:
        (tmp_path / "labels.csv").write_text("path,text\nx.wav,a\nfield 1/00.wav,5\n", "utf-8")
        with pytest.raises(ManifestError, match="found 0: "):
            prepare(recordings, tmp_path / "out", tmp_path / "labels.csv")
        found = dropped(tmp_path / "out")
        assert found["text with digits: spell them out"] == [f"{tmp_path}/labels.csv:3: 5"]
        assert len(found["text of a recording that is missing"]) == 1


class TestDrops:
    """Bad lines among good ones cost themselves alone, and each is named."""

    def test_rows_of_a_table(self, recordings: Path, tmp_path: Path) -> None:
        good = csv_table(tmp_path, recordings).read_text("utf-8").splitlines()[1:]
        path = "field 1/00.wav"
        bad = {
            "row with more or fewer cells than the first": ["a.wav,text", f"{path},a,b,c,d,e,f"],
            "text of a recording that is missing": ["none.wav,a,,,", f"{'x' * 5000},a,,,", ".,a,,,"],
            "text of a recording that cannot be read": ["radio/broken.wav,a,,,", "radio/empty.mp3,a,,,"],
            "empty text": [f"{path},...,,,", f"{path},,,,", f"{path},\u200b,,,"],
            "text with digits: spell them out": [f"{path},press 5,,,", f"{path},\u0967 a,,,"],
            "row without a recording": [",a,,,"],
            "times that make no span": [f"{path},a,,1,0.5", f"{path},a,,x,", f"{path},a,,-1,", f"{path},a,,nan,"],
            "span outside its recording": [f"{path},a,,900,901"],
            "longer than 30 s with a text: cut it, or give start and end": ["radio/show.flac,a,,,"],
            "text too long for its audio": [f"{path},{'ab' * 100},,0,0.5"],
            "span with several texts": ["radio/beep.wav,a,,,", "radio/beep.wav,b,,,", "radio/beep.wav,a,,,"],
        }
        rows = [(reason, row) for reason, rows in bad.items() for row in rows]
        lines = ["path,text,speaker,start,end", *(row for _, row in rows)]
        for line in good:
            name, text, _, speaker = line.split(",")
            lines.append(f"{name},{text},{speaker},,")
        repeated = lines[-1]
        lines.append(repeated)
        file = tmp_path / "labels.csv"
        file.write_text("\n".join(lines), "utf-8")
        manifests = prepare(recordings, tmp_path / "out", file)
        assert labeled(manifests) == expected()
        found = dropped(tmp_path / "out")
        for number, (reason, row) in enumerate(rows, 2):
            assert any(f"{what}: ".startswith(f"{file}:{number}: ") for what in found[reason]), (row, found)
        assert found["span named before"] == [f"{file}:{len(lines)}"]
        assert sum(len(whats) for reason, whats in found.items() if "pretraining" not in reason) == len(rows) + 3

    def test_a_quotation_mark_that_is_not_closed(self, recordings: Path, tmp_path: Path) -> None:
        file = csv_table(tmp_path, recordings)
        head, *lines = file.read_text("utf-8").splitlines()
        lines[:0] = [head, 'radio/jingle.WAV,"open,7,']
        lines.append('radio/beep.wav,"a field of\ntwo lines",7,')
        file.write_text("\n".join(lines), "utf-8")
        assert labeled(prepare(recordings, tmp_path / "out", file)) == expected()  # what follows is not swallowed
        found = dropped(tmp_path / "out")
        wheres = [what.split(": ")[0] for what in found["quotation mark that is not closed in its line"]]
        assert wheres == [f"{file}:2", f"{file}:23"]
        assert found["row with more or fewer cells than the first"] == [f"{file}:24: 3 for 4"]

    def test_json_that_is_none(self, recordings: Path, tmp_path: Path) -> None:
        file = json_lines(tmp_path, recordings)
        bad = ["{", "[1]", '{"path": ["a"], "text": "a"}', '{"path": "\\u0000", "text": "a"}', '{"path": "a.wav"}']
        bad += [f'{{"path": "a.wav", "text": "a", "offset": 1{"0" * 400}}}', '{"path": "a", "text": "\\ud800"}']
        file.write_text(file.read_text("utf-8") + "\n".join(bad), "utf-8")
        assert labeled(prepare(recordings, tmp_path / "out", file)) == expected()
        found = dropped(tmp_path / "out")
        assert len(found["line that is no JSON object"]) == 2
        assert len(found["value that is neither text nor number"]) == 1
        assert len(found["text of a recording that is missing"]) == 3
        assert len(found["times that make no span"]) == 1


class TestTexts:
    def test_as_they_are(self, recordings: Path, tmp_path: Path) -> None:
        file = csv_table(tmp_path, recordings)
        file.write_text(
            file.read_text("utf-8").replace('""!', '  ¹-’a\u0308""!') + "radio/beep.wav,a|b,,voice 1\n", "utf-8"
        )
        texts = labeled(prepare(recordings, tmp_path / "out", file, as_is=True))
        assert texts["00.wav", 0.0][0] == f'"{miniature_own_data.clips()["field 1/00.wav"].text.upper()} ¹-’\u00e4"!'
        assert len(texts) == 20
        assert dropped(tmp_path / "out")["text with |, which stands for the space"] == [f"{file}:22"]

    def test_the_alphabet(self, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = csv_table(tmp_path, recordings)
        manifests = prepare(recordings, tmp_path / "out", file)
        rows = [row.split("\t") for row in (tmp_path / "out" / "alphabet.tsv").read_text("utf-8").splitlines()]
        assert rows[0] == ["letter", "code", "name", "train", "dev", "test"]
        e = next(row for row in rows if row[0] == "e")
        texts = {name: "".join(utterance.text or "" for utterance in manifests[name]) for name in LABELLED}
        assert e == ["e", "U+0065", "LATIN SMALL LETTER E", *(str(texts[name].count("e")) for name in LABELLED)]
        assert {row[0] for row in rows[1:]} == set("".join(texts.values())) - {" "}
        counts = [int(row[3]) for row in rows[1:]]
        assert counts == sorted(counts, reverse=True)
        rare = [row[0] for row in rows[1:] if int(row[3]) < 5]
        warning = next(line for line in capsys.readouterr().err.splitlines() if "letters occur less than 5" in line)
        assert warning.startswith(f"warning: {len(rare)} letters")
        assert all(f"{letter} (U+{ord(letter):04X})" in warning for letter in rare)

    def test_capitals_are_those_of_the_language(self, recordings: Path, tmp_path: Path) -> None:
        names = list(miniature_own_data.clips())
        lines = [f"{name};IŞIK İ;{'en' if number % 2 else ''}" for number, name in enumerate(names)]
        (tmp_path / "labels.csv").write_text("\n".join(["path;text;language", *lines]), "utf-8")
        programs.prepare(recordings, tmp_path / "out", tmp_path / "labels.csv", None, False, language="tr")
        said = {u.path: (u.text, u.language) for name in LABELLED for u in read_manifest(tmp_path / f"out/{name}.tsv")}
        expected = [("işik i", "en") if number % 2 else ("ışık i", "tr") for number in range(len(names))]
        assert said == {str(recordings / name): pair for name, pair in zip(names, expected, strict=True)}

    def test_the_tiers_asked_for(self, recordings: Path, tmp_path: Path) -> None:
        folder = praat(tmp_path, recordings)
        programs.prepare(recordings, tmp_path / "out", folder, None, False, tiers=["said"])
        with pytest.raises(ManifestError, match=r"found 0: .*20 file without the tier asked for"):
            programs.prepare(recordings, tmp_path / "out", folder, None, False, tiers=["other"])


def seconds(utterances: Sequence[Utterance] | Manifest) -> float:
    return sum(utterance.seconds for utterance in utterances)


def assert_held_out(manifests: dict[str, Manifest]) -> None:
    """No recording is in two labeled splits, and none of dev and test in pretraining."""
    paths = {name: {utterance.path for utterance in manifest} for name, manifest in manifests.items()}
    assert paths["train"].isdisjoint(paths["dev"] | paths["test"])
    assert paths["dev"].isdisjoint(paths["test"])
    assert paths["pretrain_train"].isdisjoint(paths["dev"] | paths["test"])
    assert paths["pretrain_dev"].isdisjoint(paths["test"])
    spans = {name: {(u.path, u.start) for u in manifests[name]} for name in PRETRAIN}
    assert spans["pretrain_train"].isdisjoint(spans["pretrain_dev"])


class TestSplits:
    def test_by_speaker(self, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = csv_table(tmp_path, recordings)
        manifests = prepare(recordings, tmp_path / "out", file)
        said = "labels: split by speaker: none of 10 is in two of train, dev and test\n"
        assert said in capsys.readouterr().err
        assert_held_out(manifests)
        voices = {name: {utterance.speaker for utterance in manifests[name]} for name in LABELLED}
        assert sum(map(len, voices.values())) == len(set().union(*voices.values())) == 10
        # An unusable text does not make its recording one of somebody else.
        voice = next(iter(voices["test"]))
        with file.open("a", encoding="utf-8") as lines:
            lines.write(f"radio/jingle.WAV,press 5,,{voice}\n")
        again = prepare(recordings, tmp_path / "out", file)
        assert list(again["test"]) == list(manifests["test"])
        assert any(Path(u.path).name == "jingle.WAV" for name in PRETRAIN for u in manifests[name])
        assert not any(Path(u.path).name == "jingle.WAV" for name in PRETRAIN for u in again[name])

    def test_a_voice_in_many_recordings_and_a_recording_of_many_voices(self) -> None:
        def spoken(path: str, speaker: str) -> Utterance:
            return Utterance(path, 16_000, text="a", speaker=speaker)

        utterances = [spoken(f"{n}.wav", f"s{n}") for n in range(30)]
        utterances += [spoken("a.wav", "x"), spoken("a.wav", "y"), spoken("b.wav", "y"), spoken("b.wav", "z")]
        utterances += [spoken("c.wav", "z")]
        for order in (utterances, utterances[::-1]):
            groups = held_out._join_voices(order, [Path(utterance.path).name for utterance in order])
            joined = {
                group
                for utterance, group in zip(order, groups, strict=True)
                if Path(utterance.path).name in "a.wavb.wavc.wav"
            }
            assert len(joined) == 1
            assert len(set(groups)) == 31

    def test_too_few_speakers(self, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = csv_table(tmp_path, recordings)
        text = file.read_text("utf-8")
        for n in range(2, 10):
            text = text.replace(f"voice {n}", f"voice {n % 2}")
        file.write_text(text, "utf-8")
        manifests = prepare(recordings, tmp_path / "out", file)
        assert "labels: split by recording, as 2 speakers are too few to hold some out: " in capsys.readouterr().err
        assert_held_out(manifests)

    @pytest.mark.parametrize(
        ("lengths", "low", "high"),
        [
            ([5.0] * 120, 60, 75),  # ten minutes: a minute each
            ([5.0] * 24, 24, 30),  # two minutes: no more than a fifth each
            ([10.0] * 720, 720, 900),  # two hours: a tenth each
            ([300.0, 300.0, 20.0], 20, 300),
            ([300.0, 2.0, 2.0], 2, 2),
            ([200.0, 200.0, 200.0], 200, 200),
        ],
    )
    def test_how_much(self, lengths: list[float], low: float, high: float) -> None:
        utterances = [Utterance(f"{n}.wav", int(s * 16_000), text="a") for n, s in enumerate(lengths)]
        splits = held_out.draw_splits(utterances, str)
        shuffled = held_out.draw_splits(utterances[::-1], str)
        assert shuffled.dev[::-1] == splits.dev
        assert shuffled.test[::-1] == splits.test
        for split in (splits.dev, splits.test):
            assert low <= seconds(split) <= high
        assert sorted([*splits.train, *splits.dev, *splits.test], key=str) == sorted(utterances, key=str)
        assert splits.train

    def test_the_same_each_time_and_everywhere(self, recordings: Path, tmp_path: Path) -> None:
        file = csv_table(tmp_path, recordings)
        prepare(recordings, tmp_path / "one", file)
        elsewhere = tmp_path / "moved"
        elsewhere.symlink_to(recordings)
        lines = file.read_text("utf-8").splitlines()
        file.write_text("\n".join([lines[0], *reversed(lines[1:])]), "utf-8")
        prepare(elsewhere, tmp_path / "two", file)
        miniature_own_data.make_recordings(tmp_path / "copied")
        prepare(tmp_path / "copied", tmp_path / "three", file)
        for name in (*LABELLED, *PRETRAIN, "alphabet"):
            one, two, three = ((tmp_path / n / f"{name}.tsv").read_text("utf-8") for n in ("one", "two", "three"))
            assert one == two
            assert one.partition("\n")[2] == three.partition("\n")[2]

    def test_earlier_dev_and_test_are_kept(self, recordings: Path, tmp_path: Path) -> None:
        file = csv_table(tmp_path, recordings)
        lines = file.read_text("utf-8").splitlines()
        file.write_text("\n".join(line for line in lines if "voice 7" not in line and "voice 8" not in line), "utf-8")
        before = prepare(recordings, tmp_path / "one", file)
        voice = before["test"][0].speaker
        file.write_text("\n".join([*lines, f"radio/beep.wav,a,7,{voice}", "radio/jingle.WAV,a,7,new"]), "utf-8")
        after = prepare(recordings, tmp_path / "two", file, kept=tmp_path / "one")
        for name in ("dev", "test"):
            assert list(after[name]) == list(before[name])
        added = {utterance.speaker for utterance in after["train"]} - {
            utterance.speaker for utterance in before["train"]
        }
        assert added == {"voice 7", "voice 8", "new"}
        assert dropped(tmp_path / "two")["voice that is held out"] == [f"{recordings}/radio/beep.wav: {voice}"]
        for name in ("pretrain_train", "pretrain_dev"):
            same = {utterance for utterance in before[name] if Path(utterance.path).name != "beep.wav"}
            assert set(after[name]) == same
        with pytest.raises(ManifestError, match=r"nowhere/train\.tsv: expected a file, found none"):
            prepare(recordings, tmp_path / "three", file, kept=tmp_path / "nowhere")


class TestPretraining:
    def test_without_texts(self, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        manifests = prepare(recordings, tmp_path / "out")
        assert set(manifests) == set(PRETRAIN)
        assert capsys.readouterr().err.endswith("no texts: for pretraining only\n")
        everything = [*manifests["pretrain_train"], *manifests["pretrain_dev"]]
        for path in {utterance.path for utterance in everything}:
            spans = sorted((u.start, u.start + u.num_samples) for u in everything if u.path == path)
            assert spans[0][0] == 0
            assert all(one[1] == two[0] for one, two in pairwise(spans))
            assert spans[-1][1] == audio_info(path).num_samples
        show = [utterance.seconds for utterance in everything if Path(utterance.path).name == "show.flac"]
        assert len(show) == 3
        assert max(show) - min(show) < 0.001
        assert max(show) <= 15
        assert {Path(u.path).name for u in everything} >= {"show.flac", "jingle.WAV", "00.wav"}
        found = dropped(tmp_path / "out")
        assert found["shorter than 1 s, not used in pretraining"] == ["radio/beep.wav"]
        assert [Path(what.split(":")[0]).name for what in found["recording that cannot be read"]] == [
            "broken.wav",
            "empty.mp3",
        ]
        assert 0.1 * seconds(everything) < seconds(manifests["pretrain_dev"]) < 0.35 * seconds(everything)

    def test_one_recording_is_enough(self, tmp_path: Path) -> None:
        write_long_recordings(tmp_path / "corpus", number=1)
        manifests = prepare(tmp_path / "corpus", tmp_path / "out")
        assert [seconds(manifests[name]) for name in PRETRAIN] == [10, 10]

    @pytest.mark.parametrize("place", [".", "exp/mine"])
    def test_copies_in_an_output_below_the_corpus_are_left_out(
        self, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        corpus = tmp_path / "my recordings"
        miniature_own_data.make_recordings(corpus)
        labels = csv_table(tmp_path, corpus)
        (corpus / "unpacked").mkdir()  # recordings, whatever their folder is called, if no preparation is beside it
        (corpus / "field 1" / "unpacked").mkdir()
        (corpus / "radio" / "show.flac").rename(corpus / "field 1" / "unpacked" / "show.flac")
        out = corpus / place
        before = prepare(corpus, out / "data", labels)
        unpack_manifests(list(before.values()), out / "unpacked")
        assert "left out" not in capsys.readouterr().err
        (out / "data" / "pretrain_train.tsv").unlink()  # its own folder, however far it has come
        for another in (out / "data", tmp_path / "elsewhere", corpus / "second" / "data"):
            after = prepare(corpus, another, labels)
            assert {name: list(manifest) for name, manifest in after.items()} == {
                name: list(manifest) for name, manifest in before.items()
            }
            assert f"{out / 'unpacked'}: left out, copies of recordings\n" in capsys.readouterr().err
        assert any(Path(item.path).parent.name == "unpacked" for item in before["pretrain_train"])

    def test_recordings_outside_the_folder(self, recordings: Path, tmp_path: Path) -> None:
        corpus = tmp_path / "corpus"
        write_long_recordings(corpus, number=1)
        manifests = prepare(corpus, tmp_path / "out", kaldi_in(tmp_path / "data", recordings))
        assert labeled(manifests) == expected()
        heard = [*manifests["pretrain_train"], *manifests["pretrain_dev"]]  # either may have any of them
        assert {Path(u.path).name for u in heard} > {Path(u.path).name for u in manifests["train"]}

    def test_labels_that_vanish_take_their_manifests_along(self, recordings: Path, tmp_path: Path) -> None:
        assert "train" in prepare(recordings, tmp_path / "out", csv_table(tmp_path, recordings))
        assert set(prepare(recordings, tmp_path / "out")) == set(PRETRAIN)

    def test_formats_that_read_slowly_are_named(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(programs, "_SLOW_SECONDS", 3.0)
        (tmp_path / "corpus").mkdir()
        noise = np.random.default_rng(0).normal(0, 0.1, 20 * 16_000)
        soundfile.write(tmp_path / "corpus" / "long.mp3", noise, 16_000)
        soundfile.write(tmp_path / "corpus" / "long.flac", noise, 16_000)
        prepare(tmp_path / "corpus", tmp_path / "out")
        assert "warning: 1 long recordings such as long.mp3 are in a format" in capsys.readouterr().err


def kaldi_in(folder: Path, recordings: Path) -> Path:
    folder.mkdir()
    return kaldi(folder, recordings)


class TestRun:
    def test_refusals_are_one_line(self, tmp_path: Path) -> None:
        settings = {"LICENSE": "CC0"}
        result = run_recipe("own_data", tmp_path / "out", CORPUS=str(tmp_path / "no such"), **settings)
        assert result.returncode == 1
        line = f"error: CORPUS={tmp_path}/no such: expected a folder with recordings, found none"
        assert result.stderr.splitlines() == ["== prepare", line]
        result = run_recipe("own_data", tmp_path / "out", **settings)
        assert result.returncode == 1
        assert result.stderr.splitlines()[-1] == "error: CORPUS=: expected a folder with recordings, found nothing"
        result = run_recipe("own_data", tmp_path / "out", SIZE="huge", **settings)
        assert result.returncode == 1
        assert result.stderr.splitlines() == ["error: SIZE=huge: expected one of small base"]
        result = run_recipe("own_data", tmp_path / "out", TEXTS="foo", **settings)
        assert result.returncode == 1
        assert result.stderr.splitlines() == ["error: TEXTS=foo: expected one of normalized asis"]

    def test_recordings_are_unpacked_if_asked_for(self, recordings: Path, tmp_path: Path) -> None:
        (tmp_path / "out" / "unpacked").mkdir(parents=True)
        (tmp_path / "out" / "unpacked" / "train.tsv").touch()  # of an earlier preparation, which had texts
        settings = {"CORPUS": str(recordings), "LICENSE": "CC0", "UNPACK": "1", "TO": "check", "LABELS": "none"}
        result = run_recipe("own_data", tmp_path / "out", **settings)
        manifest = read_manifest(tmp_path / "out" / "unpacked" / "pretrain_train.tsv")
        assert len(manifest) == len(read_manifest(tmp_path / "out" / "data" / "pretrain_train.tsv"))
        assert all(Path(utterance.path).suffix == ".wav" and Path(utterance.path).exists() for utterance in manifest)
        assert result.returncode == 0, result.stderr

    def test_without_texts_it_stops_after_pretraining(self, tmp_path: Path) -> None:
        miniature_own_data.make_recordings(tmp_path / "my recordings")
        out = tmp_path / "out"
        (out / "pretrain").mkdir(parents=True)
        result = run_recipe("own_data", out, CORPUS=str(tmp_path / "my recordings"), INIT=str(out / "pretrain"))
        assert result.returncode == 0, result.stderr
        lines = result.stderr.splitlines()
        assert "license of their data is unknown" in lines[0]
        stages = [line for line in lines if line.startswith("== ")]
        assert stages == ["== prepare", "== unpack", "== check", "== pretrain", "== finetune"]
        stopped = f"stopped before finetune: there are no texts in {out}/data (LABELS=... says where they are)"
        assert stopped in lines
        assert "0 errors" in (out / "check_pretrain.txt").read_text("utf-8")

    def test_configurations_are_whole(self) -> None:
        from speechssl.train.finetune import FinetuneConfig
        from speechssl.train.pretrain import PretrainConfig

        data = ["data.train=a", "data.dev=b", "data.license=c"]
        prompts, models = RECIPES / "prompts", RECIPES / "models"
        small = [RECIPE / "encoder_small.toml", prompts / "pretrain.toml", RECIPE / "small_pretrain.toml"]
        base = [models / "wav2vec2_base.toml", RECIPE / "base_pretrain.toml"]
        for files, kind, layers in ((small, "masked_prediction", 4), (base, "contrastive", 12)):
            config = PretrainConfig.load(files, data)
            assert (config.objective.kind, config.encoder.context.num_layers) == (kind, layers)
            assert config.batches.min_seconds <= programs.MIN_DEV_PIECE_SECONDS
        published = PretrainConfig.load(base[:1], data)
        quantizer, original = config.objective.quantizer, published.objective.quantizer
        for share in (0.25, 0.5, 0.69, 1.0):  # the same temperature at the same share of the run
            temperature = quantizer.temperature(round(share * config.trainer.num_steps))
            expected = original.temperature(round(share * published.trainer.num_steps))
            assert temperature == pytest.approx(expected, rel=1e-3)
        assert quantizer.temperature(config.trainer.num_steps) == 0.5
        for files in ([prompts / "finetune.toml", RECIPE / "small_finetune.toml"], [RECIPE / "base_finetune.toml"]):
            config = FinetuneConfig.load(files, [*data, "init=d"])
            assert config.best_metric == "cer"
            assert config.batches.max_seconds == 30
