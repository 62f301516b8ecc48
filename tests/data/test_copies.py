import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from speechssl.data.check import BASE_GEOMETRY, check_manifests
from speechssl.data.copies import Copies, listen
from speechssl.data.fingerprint import NUM_BYTES, fingerprint, similar_pairs
from speechssl.data.manifest import Manifest, Utterance, read_manifest, write_manifest

RATE = 16_000
NOISE = np.random.default_rng(99)


def speak(seed: int, seconds: float = 1.5) -> np.ndarray:
    """Something like speech: pulses through formants that change with every sound, and pauses."""
    generator = np.random.default_rng(seed)
    sounds = []
    while sum(map(len, sounds)) < seconds * RATE:
        time = np.arange(generator.integers(RATE // 12, RATE // 5)) / RATE
        pitch = generator.uniform(90, 220)
        harmonics = np.arange(1, int(3800 / pitch))
        formants = generator.uniform((300, 900, 2200), (900, 2200, 3500))
        gains = sum(np.exp(-(((harmonics * pitch - formant) / 150) ** 2)) for formant in formants) + 0.01
        sound = (gains[:, None] * np.sin(2 * np.pi * pitch * harmonics[:, None] * time)).sum(axis=0)
        sounds += [generator.uniform(0.3, 1) * sound * np.hanning(len(time)), np.zeros(generator.integers(0, 800))]
    speech = np.concatenate(sounds)
    return (0.5 * speech / np.abs(speech).max()).astype(np.float32)


def encoded(samples: np.ndarray, rate: int, **how: object) -> np.ndarray:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **how)
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0]


COPIES = {
    "gain and offset": lambda x: (0.05 * x + 0.1, RATE),
    "16 bits at -40 dB": lambda x: (encoded(0.01 * x, RATE, format="WAV", subtype="PCM_16"), RATE),
    "MP3": lambda x: (encoded(x, RATE, format="MP3"), RATE),
    "MP3 at another rate": lambda x: (encoded(soxr.resample(x, RATE, 44_100), 44_100, format="MP3"), 44_100),
    "telephone": lambda x: (encoded(soxr.resample(x, RATE, 8000), 8000, format="WAV", subtype="ULAW"), 8000),
    "shifted": lambda x: (np.concatenate([np.zeros(1105, np.float32), x, np.zeros(3000, np.float32)]), RATE),
    "clipped": lambda x: (np.clip(3 * x, -1, 1), RATE),
    "noise at 30 dB": lambda x: (x + x.std() * 10**-1.5 * NOISE.standard_normal(len(x)).astype(np.float32), RATE),
}


def pairs_of(recordings: list[tuple[np.ndarray, int]]) -> set[tuple[int, int]]:
    prints = [fingerprint(*recording) for recording in recordings]
    bits = np.frombuffer(b"".join(found.bits for found in prints), np.uint8).reshape(-1, NUM_BYTES)
    return set(similar_pairs(bits, np.array([found.spread for found in prints])))


@pytest.mark.parametrize("change", COPIES)
def test_copies_are_found_and_others_are_not(change: str) -> None:
    originals = [(speak(seed), RATE) for seed in range(20)]
    copies = [COPIES[change](samples) for samples, _ in originals]
    found = pairs_of([*originals, *copies])
    assert len(found) >= 19
    assert found <= {(number, number + 20) for number in range(20)}


def test_all_of_many_copies_are_found() -> None:
    found = fingerprint(speak(0), RATE)
    bits = np.tile(np.frombuffer(found.bits, np.uint8), (300, 1))
    pairs = similar_pairs(bits, np.full(300, found.spread))
    assert {second for _, second in pairs} == set(range(1, 300))


@pytest.mark.slow
def test_only_true_copies_are_found_in_the_prompts() -> None:
    """Four voices that say the same words many times; some prompts are the same recording under two names."""
    corpus = Path(__file__).parents[2] / "recipes" / "prompts" / "corpus"
    languages = {path.name: soundfile.read(path, dtype="float32")[0] for path in corpus.glob("*.opus")}
    head, *lines = (corpus / "clips.tsv").read_text("utf-8").splitlines()
    rows = [dict(zip(head.split("\t"), line.split("\t"), strict=False)) for line in lines]
    clips = [languages[row["path"]][int(row["start"]) :][: int(row["num_samples"])] for row in rows]
    pairs = pairs_of([(clip, RATE) for clip in clips])
    assert len(pairs) >= 10
    for first, second in pairs:
        one, two = clips[first], clips[second]
        size = len(one) + len(two)
        correlation = np.fft.irfft(np.fft.rfft(one, size) * np.fft.rfft(two, size).conj(), size)
        assert correlation.max() > 0.9 * np.linalg.norm(one) * np.linalg.norm(two), (rows[first], rows[second])


def test_silence_has_no_fingerprint() -> None:
    assert fingerprint(np.zeros(RATE, np.float32), RATE) is None
    assert fingerprint(np.full(RATE, 0.1, np.float32), RATE) is None


@pytest.mark.parametrize("rate", [4000, 8000, 48_000])
@pytest.mark.parametrize("num_samples", [1, 100, 5000])
def test_any_length_and_rate_has_one(rate: int, num_samples: int) -> None:
    samples = NOISE.standard_normal(num_samples).astype(np.float32)
    found = fingerprint(samples, rate)
    assert found is None if num_samples == 1 else len(found.bits) == NUM_BYTES


def make_manifest(folder: Path, name: str, recordings: dict[str, np.ndarray], **columns: str) -> Manifest:
    for file, samples in recordings.items():
        soundfile.write(folder / file, samples, RATE)
    rows = [Utterance(str(folder / file), len(samples), **columns) for file, samples in recordings.items()]
    write_manifest(folder / f"{name}.tsv", rows, ".")
    return read_manifest(folder / f"{name}.tsv")


def test_the_check_tells_copies_within_a_split_from_those_across(tmp_path: Path) -> None:
    a, b, c = (speak(seed) for seed in range(3))
    train = make_manifest(tmp_path, "train", {"a.wav": a, "b.wav": b, "b2.wav": b, "a2.flac": 0.2 * a + 0.001})
    test = make_manifest(tmp_path, "test", {"c.wav": c, "b3.wav": b, "a3.wav": np.roll(a, 300)})
    problems = check_manifests([train, test], BASE_GEOMETRY, None)
    assert [(problem.kind, problem.where, problem.is_error) for problem in problems] == [
        ("duplicate", train.where(2), False),
        ("near duplicate", train.where(3), False),
        ("duplicate in another split", test.where(1), True),
        ("near duplicate in another split", test.where(2), False),
    ]
    first, _, _, last = (problem.detail for problem in problems)
    assert first == f"{tmp_path}/b2.wav: has the same samples as {tmp_path}/b.wav ({train.where(1)})"
    assert last == f"{tmp_path}/a3.wav: sounds like {tmp_path}/a.wav ({train.where(0)})"


def test_a_copy_in_another_split_counts_more_than_one_beside_it(tmp_path: Path) -> None:
    heard = [listen(Utterance(str(tmp_path / name), RATE)) for name in ("x.wav",) if not (tmp_path / name).exists()]
    assert "expected an audio file" in str(heard[0])
    train = make_manifest(tmp_path, "train", {"a.wav": speak(1), "a2.wav": 0.3 * speak(1)})
    test = make_manifest(tmp_path, "test", {"a3.wav": 0.3 * speak(1), "a4.wav": 0.3 * speak(1)})
    copies = Copies()
    for split, manifest in enumerate((train, test)):
        for row, utterance in enumerate(manifest):
            copies.add((split, row), listen(utterance))
    assert [(found.original, found.copy, found.is_exact) for found in copies.find()] == [
        ((0, 0), (0, 1), False),
        ((0, 1), (1, 0), True),
        ((0, 1), (1, 1), True),
    ]
    assert list(Copies().find()) == []


def test_speakers_in_two_splits(tmp_path: Path) -> None:
    train = make_manifest(tmp_path, "train", {"a.wav": speak(1), "b.wav": speak(2)}, speaker="ann")
    test = make_manifest(tmp_path, "test", {"c.wav": speak(3)}, speaker="ann")
    dev = make_manifest(tmp_path, "dev", {"d.wav": speak(4)}, speaker="bob")
    none = make_manifest(tmp_path, "none", {"e.wav": speak(5)})
    (problem,) = check_manifests([train, dev, test, none], BASE_GEOMETRY, None)
    assert (problem.kind, problem.where, problem.is_error) == ("shared speakers", str(test.path), False)
    assert problem.detail == f"1 of 1 speaker are also in {train.path}: ann"


@pytest.mark.parametrize(("gain", "offset", "kind"), [(0.01, 0, "quiet"), (0.5, 0.05, "offset"), (30, 0, "clipped")])
def test_the_check_names_faulty_levels(tmp_path: Path, gain: float, offset: float, kind: str) -> None:
    manifest = make_manifest(tmp_path, "train", {"a.wav": np.clip(gain * speak(1) + offset, -1, 1)})
    problems = check_manifests([manifest], BASE_GEOMETRY, None)
    assert kind in [problem.kind for problem in problems]
    assert all(problem.where == manifest.where(0) and not problem.is_error for problem in problems)
