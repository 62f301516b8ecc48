import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechssl.data import check, copies, decoder, headers
from speechssl.data.check import BASE_GEOMETRY, Problem, check_before_training, check_manifests
from speechssl.data.check_report import format_report, make_report
from speechssl.data.headers import Header, read_headers
from speechssl.data.manifest import Manifest, Utterance, read_manifest, write_manifest
from speechssl.data.recording import audio_info
from speechssl.data.units import Letters

VOCABULARY = Letters.from_texts(["abc"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(("a", "b")):
        soundfile.write(tmp_path / f"{name}.wav", np.random.default_rng(seed).uniform(-0.1, 0.1, 16_000), 16_000)
    (tmp_path / "broken.wav").write_text("no audio")
    return tmp_path


def make_manifest(folder: Path, utterances: Sequence[Utterance], name: str = "train") -> Manifest:
    write_manifest(folder / f"{name}.tsv", utterances, ".")
    return read_manifest(folder / f"{name}.tsv")


def kinds(problems: Sequence[Problem]) -> list[tuple[str, str]]:
    return [(problem.kind, problem.where.rpartition(":")[2]) for problem in problems]


def test_clean_data_has_no_problem(folder: Path) -> None:
    train = make_manifest(folder, [Utterance(str(folder / "a.wav"), 16_000, text="abc a")])
    test = make_manifest(folder, [Utterance(str(folder / "b.wav"), 16_000, text="b")], "test")
    assert check_manifests([train, test], BASE_GEOMETRY, VOCABULARY) == []
    assert check_before_training(train, BASE_GEOMETRY, VOCABULARY, 16_000) == []


def test_planted_errors_are_found_without_decoding(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = folder / "a.wav"
    manifest = make_manifest(
        folder,
        [
            Utterance(str(folder / "missing.wav"), 16_000, text="a"),
            Utterance(str(folder / "missing.wav"), 16_000, text="a"),
            Utterance(str(folder / "broken.wav"), 16_000, text="a"),
            Utterance(str(a), 12_000, start=4001, text="a"),
            Utterance(str(a), 16_000, sample_rate=8000, text="a"),
            Utterance(str(a), 399, text="a"),
            Utterance(str(a), 16_000),
            Utterance(str(a), 16_000, text="aé|"),
            Utterance(str(a), 16_000, text="ab" * 25),
            Utterance(str(a), 16_000, text="a"),
        ],
    )
    monkeypatch.setattr(copies, "read_span", None)
    problems = check_before_training(manifest, BASE_GEOMETRY, VOCABULARY, 400)
    assert kinds(problems) == [
        ("unreadable", "3"),
        ("unreadable", "5"),
        ("too long", "6"),
        ("sample rate", "7"),
        ("too short", "8"),
        ("labels too long", "8"),
        ("empty text", "9"),
        ("unknown characters", "10"),
        ("labels too long", "11"),
    ]
    assert all(problem.is_error for problem in problems)
    details = [problem.detail for problem in problems]
    assert details[0] == f"{folder / 'missing.wav'}: expected an audio file, found none"
    assert details[2:] == [
        f"{a}: expected 16001 samples, found 16000",
        f"{a}: expected 8000 samples a second, found 16000",
        "expected at least 400 samples at 16 kHz, found 399",
        "expected at least 2 frames for the labels, found 0 (0.02 s)",
        "expected a text, found none",
        "expected characters of the vocabulary, found '|' (U+007C), 'é' (U+00E9)",
        "expected at least 51 frames for the labels, found 49 (1.00 s)",
    ]
    assert kinds(check_before_training(manifest, BASE_GEOMETRY, None, 0)) == kinds(problems)[:4]


def test_repeated_letters_need_more_frames(folder: Path) -> None:
    # One second is 49 frames: 24 pairs and a delimiter fit, as many equal letters need blanks between them.
    rows = [Utterance(str(folder / "a.wav"), 16_000, text=text) for text in ("ab" * 24, "a" * 24, "a" * 25)]
    problems = check_before_training(make_manifest(folder, rows), BASE_GEOMETRY, VOCABULARY, 0)
    assert kinds(problems) == [("labels too long", "5")]
    assert problems[0].detail.startswith("expected at least 50 frames for the labels, found 49")


def test_each_header_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(headers, "audio_info", lambda path, **how: read.append(path) or audio_info(path, **how))
    rows = [Utterance(str(folder / "a.wav"), 1000, start=start, text="a") for start in range(0, 15_000, 100)]
    assert check_before_training(make_manifest(folder, rows), BASE_GEOMETRY, VOCABULARY, 0) == []
    assert read == [str(folder / "a.wav")]


def test_headers_are_looked_at_some_rows_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        Utterance(str(folder / name), 16_000, start=n) for n, name in enumerate(["broken.wav", "a.wav", "b.wav"] * 2)
    ]
    manifest = make_manifest(folder, rows)
    expected = check_before_training(manifest, BASE_GEOMETRY, None, 0)
    assert kinds(expected) == [("unreadable", "3"), *(("too long", str(line)) for line in (4, 5, 7, 8))]
    asked: list[int] = []

    def note(paths: Iterable[str], **options: bool) -> dict[str, Header]:
        found = read_headers(paths, **options)
        asked.append(len(found))
        return found

    monkeypatch.setattr(check, "read_headers", note)
    monkeypatch.setattr(check, "_AT_ONCE", 2)
    assert check_before_training(manifest, BASE_GEOMETRY, None, 0) == expected
    assert asked == [2, 2, 2]


def test_what_states_no_length_is_not_decoded_before_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000)
    soundfile.write(folder / "a.mp3", noise, 16_000, format="MP3")
    content = (folder / "a.mp3").read_bytes()
    (folder / "a.mp3").write_bytes(content.replace(b"Xing", b"none").replace(b"Info", b"none"))
    length = audio_info(folder / "a.mp3").num_samples
    (folder / "b.mp3").write_bytes(b"no audio")
    rows = [Utterance(str(folder / "a.mp3"), length + extra, text="a") for extra in (0, 1)]
    rows += [Utterance(str(folder / "a.mp3"), 8000, sample_rate=8000), Utterance(str(folder / "b.mp3"), 8000)]
    manifest = make_manifest(folder, rows)
    assert kinds(check_manifests([manifest], BASE_GEOMETRY, None))[:3] == [
        ("too long", "4"),
        ("sample rate", "5"),
        ("unreadable", "6"),
    ]
    monkeypatch.setattr(decoder.Decoder, "decode", None)
    found = check_before_training(manifest, BASE_GEOMETRY, None, 0)
    assert kinds(found) == [("sample rate", "5"), ("unreadable", "6")]


def test_what_only_listening_finds(folder: Path) -> None:
    noises = np.random.default_rng(9).uniform(-0.5, 0.5, (4, 16_000))
    once, flat, broken, noise = noises[0], np.clip(noises[1], -0.2, 0.2), noises[2], noises[3]
    once[5] = 1.0
    broken[7] = np.inf
    soundfile.write(folder / "peak.wav", once, 16_000)
    soundfile.write(folder / "flat.wav", flat, 16_000)
    soundfile.write(folder / "silent.wav", np.zeros(16_000), 16_000)
    soundfile.write(folder / "inf.wav", broken, 16_000, subtype="FLOAT")
    soundfile.write(folder / "cut.flac", noise, 16_000)
    content = (folder / "cut.flac").read_bytes()
    (folder / "cut.flac").write_bytes(content[: len(content) // 2])
    names = ("peak.wav", "flat.wav", "silent.wav", "inf.wav", "cut.flac", "broken.wav")
    rows = [Utterance(str(folder / name), 16_000) for name in names]
    rows[0] = Utterance(str(folder / "peak.wav"), 15_000)
    problems = check_manifests([make_manifest(folder, rows)], BASE_GEOMETRY, None)
    assert sorted(kinds(problems), key=lambda found: int(found[1])) == [
        ("length differs", "3"),
        ("clipped", "4"),
        ("silence", "5"),
        ("unreadable", "6"),
        ("unreadable", "7"),
        ("unreadable", "8"),
    ]
    assert [problem.kind for problem in problems if not problem.is_error] == ["length differs", "clipped", "silence"]
    assert any(
        problem.detail == f"{folder / 'inf.wav'}: expected finite samples, found inf at sample 7"
        for problem in problems
    )


def test_texts_are_checked_only_where_there_are_some(folder: Path) -> None:
    unlabeled = make_manifest(folder, [Utterance(str(folder / "a.wav"), 16_000)])
    assert check_manifests([unlabeled], BASE_GEOMETRY, VOCABULARY) == []
    rows = [Utterance(str(folder / "a.wav"), 16_000, text="xyz"), Utterance(str(folder / "b.wav"), 16_000, text=" ")]
    partly = make_manifest(folder, rows)
    assert kinds(check_manifests([partly], BASE_GEOMETRY, None)) == [("empty text", "4")]
    assert kinds(check_manifests([partly], BASE_GEOMETRY, VOCABULARY)) == [
        ("unknown characters", "3"),
        ("empty text", "4"),
    ]
    delimiter = make_manifest(folder, [Utterance(str(folder / "a.wav"), 16_000, text="a|b")])
    assert kinds(check_manifests([delimiter], BASE_GEOMETRY, None)) == [("unknown characters", "3")]


def test_russian_letters_and_their_composed_form(folder: Path) -> None:
    vocabulary = Letters.from_texts(["ещё раз"])
    rows = [
        Utterance(str(folder / "a.wav"), 8000, text="зараще\u0308"),
        Utterance(str(folder / "b.wav"), 8000, text="раз, ещё"),
    ]
    problems = check_before_training(make_manifest(folder, rows), BASE_GEOMETRY, vocabulary, 0)
    assert [problem.detail for problem in problems] == ["expected characters of the vocabulary, found ',' (U+002C)"]


def test_overlapping_spans_of_two_splits(folder: Path) -> None:
    a = folder / "a.wav"
    (folder / "link.wav").symlink_to(a)
    rows = [Utterance(str(a), 10_000), Utterance(str(a), 1000, start=500), Utterance(str(a), 1000, start=12_000)]
    train = make_manifest(folder, rows)
    apart = make_manifest(
        folder, [Utterance(str(a), 2000, start=10_000), Utterance(str(a), 3000, start=13_000)], "apart"
    )
    assert check_manifests([train, apart], BASE_GEOMETRY, None) == []
    test = make_manifest(
        folder, [Utterance(str(folder / "link.wav"), 1000, start=9999), Utterance(str(a), 500, start=12_999)], "test"
    )
    problems = check_manifests([train, test], BASE_GEOMETRY, None)
    assert [(problem.kind, problem.where, problem.detail) for problem in problems] == [
        ("overlap", test.where(0), f"{a.resolve()}: shares samples with {train.where(0)}"),
        ("overlap", test.where(1), f"{a.resolve()}: shares samples with {train.where(2)}"),
    ]
    assert problems[0].is_error


def test_texts_in_two_splits_are_a_warning_with_counts(folder: Path) -> None:
    a, b = folder / "a.wav", folder / "b.wav"
    train = make_manifest(
        folder, [Utterance(str(a), 5000, start=0, text="Hello, you!"), Utterance(str(a), 5000, 5000, text="c")]
    )
    rows = [
        Utterance(str(b), 5000, text="new"),
        Utterance(str(b), 5000, 5000, text="hello  you"),
        Utterance(str(b), 3000, 9000, text="new"),
    ]
    test = make_manifest(folder, rows, "test")
    (problem,) = check_manifests([train, test], BASE_GEOMETRY, None)
    assert not problem.is_error
    assert problem == Problem(
        "repeated text",
        str(test.path),
        f"1 of 2 different texts are also in {train.path}: 'hello you' in {test.where(1)} and {train.where(0)}",
    )


def test_the_report(folder: Path) -> None:
    a = folder / "a.wav"
    rows = [
        Utterance(str(a), 8000, text="ab", speaker="ann", language="en"),
        Utterance(str(a), 24_000, text="абв", speaker="bob", language="ru"),
        Utterance(str(a), 56_000, text="a b", speaker="bob", language="en"),
    ]
    manifest = make_manifest(folder, rows)
    problems = [Problem("too long", f"x:{i}", "detail") for i in range(25)] + [Problem("silence", "y:1", "quiet")]
    report = make_report([manifest], problems)
    assert format_report(report).splitlines() == [
        f"{manifest.path}: 3 utterances, 0.1 minutes; 0.50 to 3.50 s, median 1.50 s",
        "  texts: 3, 4 words, 5 different characters: abабв",
        "  languages: en, ru",
        "  speakers: 2",
        "",
        "error: too long: 25",
        *[f"  x:{i}: detail" for i in range(20)],
        "  ... and 5 more",
        "warning: silence: 1",
        "  y:1: quiet",
        "25 errors, 1 warning",
    ]
    values = json.loads(json.dumps(report))
    assert values["errors"]["too long"]["count"] == 25
    assert len(values["errors"]["too long"]["first"]) == 20
    assert values["warnings"] == {"silence": {"count": 1, "first": [{"where": "y:1", "detail": "quiet"}]}}
    assert values["manifests"][0]["hours"] == pytest.approx(5.5 / 3600)
    assert values["manifests"][0]["languages"] == ["en", "ru"]
