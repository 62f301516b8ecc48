"""Probes of features whose answer is known."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from speechssl.__main__ import app
from speechssl.data.manifest import Utterance, read_manifest, write_manifest
from speechssl.evaluate import letters
from speechssl.evaluate.letters import NONE, AlignedUtterance, Letter, align_manifest
from speechssl.evaluate.probe import LetterProbe, Source, letter_spans, nearest_frames
from speechssl.frames import FrameGeometry

GEOMETRY = FrameGeometry((160,), (160,))  # 10 ms, as the planted model's
FINER = FrameGeometry((80,), (40,))
TEXTS = ["abc cab", "bca", "cab bac", "abcab", "cba abc", "bbc aac"]


@pytest.fixture
def manifest(plant, tmp_path: Path) -> Path:
    paths = [plant(text, f"{number}.wav") for number, text in enumerate(TEXTS)]
    samples = [(3 * (len(text) + 1) + 1) * 160 for text in TEXTS]  # two frames a symbol and a blank, words end too
    utterances = [
        Utterance(str(path), length, text=text, speaker="ann", language="en")
        for path, text, length in zip(paths, TEXTS, samples, strict=True)
    ]
    write_manifest(tmp_path / "letters.tsv", utterances, ".")
    return tmp_path / "letters.tsv"


@pytest.fixture
def aligned(manifest: Path, checkpoint, monkeypatch: pytest.MonkeyPatch) -> list[AlignedUtterance]:
    checkpoint.model.sureness = 20.0
    monkeypatch.setattr(letters, "load_ctc", lambda path, device: checkpoint)
    return align_manifest(Path("planted"), read_manifest(manifest))


def test_letters_are_where_they_sound(aligned: list[AlignedUtterance], checkpoint) -> None:
    units = checkpoint.vocabulary
    second = aligned[1]  # "bca" and the delimiter, each two frames and a blank
    b, c, a = units.encode("bca")[:3]
    assert second.symbols[:3].tolist() == [b, b, b]  # the frame between goes to the one before it
    assert second.symbols[3:9].tolist() == [c, c, c, a, a, a]
    assert [letter.symbol for letter in second.letters] == [b, c, a]
    assert second.letters[1].first == pytest.approx(3.5 * 0.01)
    assert second.letters[1].last == pytest.approx(5.5 * 0.01)


def test_frames_far_from_every_letter_are_nothings(checkpoint, plant, tmp_path: Path, monkeypatch) -> None:
    """Ten frames of silence behind a letter: two of them count with it."""
    import soundfile

    samples, rate = soundfile.read(plant("a"), dtype="float32")
    soundfile.write(tmp_path / "long.wav", np.concatenate([samples, np.zeros(1600, np.float32)]), rate)
    write_manifest(tmp_path / "long.tsv", [Utterance(str(tmp_path / "long.wav"), len(samples) + 1600, text="a")], ".")
    checkpoint.model.sureness = 20.0
    monkeypatch.setattr(letters, "load_ctc", lambda path, device: checkpoint)
    (found,) = align_manifest(Path("planted"), read_manifest(tmp_path / "long.tsv"))
    delimiter = checkpoint.vocabulary.delimiter_id
    last = np.flatnonzero(found.symbols == delimiter)[-1]
    assert last == 4 + 2
    assert (found.symbols[last + 1 :] == NONE).all()


def test_other_frames_are_asked_at_the_same_times() -> None:
    times = (np.arange(5) * 160 + 80) / 16_000
    assert nearest_frames(GEOMETRY, times, 5).tolist() == [0, 1, 2, 3, 4]
    assert nearest_frames(FINER, times, 100).tolist() == [1, 5, 9, 13, 17]
    assert nearest_frames(FINER, times, 10).tolist() == [1, 5, 9, 9, 9]
    letter = Letter(3, times[1], times[2])
    utterance = AlignedUtterance(None, np.zeros(800, np.float32), times, np.zeros(5, np.int64), (letter,))
    assert letter_spans(GEOMETRY, utterance, 5) == [(1, 3)]
    # The centers of finer frames lie at 2.5, 5, 7.5 ... ms: those from 10 up to 30.
    assert letter_spans(FINER, utterance, 100) == [(3, 11)]
    coarse = FrameGeometry((1600,), (1600,))
    assert letter_spans(coarse, utterance, 1) == [(0, 1)]


def source_of(aligned: list[AlignedUtterance], knows: bool) -> Source:
    """Two layers: letters as they are, or nothing of them; and noise."""

    def analyze(waveforms: Tensor) -> list[Tensor]:
        utterance = next(u for u in aligned if np.array_equal(u.waveform, waveforms[0].numpy()))
        generator = torch.Generator().manual_seed(len(utterance.symbols))
        noise = torch.randn(len(utterance.symbols), 200, generator=generator)  # enough to learn by heart
        symbols = torch.from_numpy(utterance.symbols) + 1
        known = torch.nn.functional.one_hot(symbols, 64).float()
        return [known if knows else noise, noise]

    return Source("planted", GEOMETRY, analyze)


def test_who_knows_the_letters_reads_them(aligned: list[AlignedUtterance], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speechssl.evaluate.probe.MIN_TOKENS", 2)
    probe = LetterProbe(aligned, seed=0)
    knowing, noise = probe.measure(source_of(aligned, knows=True))
    assert knowing == {"letters": 1.0, "abx": 0.0}
    assert noise["letters"] < 0.6
    assert noise["abx"] == pytest.approx(0.5, abs=0.15)
    described = probe.describe()
    assert described["train_frames"] + described["test_frames"] == sum(len(u.symbols) for u in aligned)
    assert described["abx_pairs"] == 6


def test_few_frames_are_drawn(aligned: list[AlignedUtterance], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speechssl.evaluate.probe.NUM_FRAMES", 60)
    probe = LetterProbe(aligned, seed=0)
    described = probe.describe()
    assert described["train_frames"] + described["test_frames"] == 60
    assert probe.measure(source_of(aligned, knows=True))[0]["letters"] == 1.0


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["probe", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_on_a_real_model(manifest: Path, model_folder: Path, plant, tmp_path: Path) -> None:
    utterances = [
        Utterance(str(plant(TEXTS[number % 6], f"v{number}.wav")), 1500, speaker=speaker, language=language)
        for number, (speaker, language) in enumerate([("ann", "en"), ("ann", "es"), ("ben", "fr")] * 5)
    ]
    write_manifest(tmp_path / "voices.tsv", utterances, ".")
    options = ("--letters", manifest, "--aligned-by", model_folder, "--voices", tmp_path / "voices.tsv")
    code, table, said = run(model_folder, *options, "-o", tmp_path / "found.json")
    assert code == 0, said
    found = json.loads((tmp_path / "found.json").read_text("utf-8"))
    names = ["log-mel spectra, alone and with two on each side", "fresh weights", str(model_folder)]
    assert [row["features"] for row in found["rows"]] == names
    assert [len(row["layers"]) for row in found["rows"]] == [2, 2, 2]
    measures = {"letters", "language", "voice", "language_one_voice", "voice_new_language"}
    assert set(found["rows"][2]["layers"][0]) - {"abx"} == measures
    value = 100 * found["rows"][2]["layers"][1]["letters"]
    assert f"| {model_folder} | letters | {100 * found['rows'][2]['layers'][0]['letters']:.1f} {value:.1f} |" in table
    assert run(model_folder, *options, "--no-baselines")[1].splitlines()[2:] == [
        line for line in table.splitlines() if line.startswith(f"| {model_folder}")
    ]


def test_what_is_lacking_is_one_line(manifest: Path, model_folder: Path) -> None:
    assert run(model_folder)[::2] == (1, "error: probe: expected --letters, --voices or both\n")
    code, _, said = run(model_folder, "--letters", manifest)
    assert (code, said.count("\n")) == (1, 1)
    assert "expected --aligned-by" in said
