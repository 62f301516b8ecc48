from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechssl.data import headers as headers_module
from speechssl.data.corpus import Clip, Preparation
from speechssl.data.manifest import read_manifest
from speechssl.data.recording import AudioInfo, audio_info
from speechssl.errors import ManifestError


@pytest.fixture
def recordings(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "corpus"
    folder.mkdir()
    paths = [folder / f"{name}.wav" for name in ("one", "two", "three")]
    for number, path in enumerate(paths, 1):
        soundfile.write(path, np.full(8000 * number, 0.1), 8000)
    return paths


def test_clips_become_a_manifest_and_the_rest_is_accounted_for(
    recordings: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corpus" / "bad.wav").write_bytes(b"RIFF")
    preparation = Preparation(tmp_path / "data")
    preparation.drop("no text", "clip 7")
    clips = [
        Clip(recordings[0], "eins", "a", "de"),
        Clip(tmp_path / "corpus" / "bad.wav"),
        Clip(tmp_path / "corpus" / "missing.wav"),
        Clip(recordings[2], "drei", "b", "de", start=0.5, end=2.0),
        Clip(recordings[1], start=2.0, end=3.0),
    ]
    preparation.write({"train": preparation.utterances(clips)}, tmp_path / "corpus")
    preparation.report_dropped()
    first, second = read_manifest(tmp_path / "data" / "train.tsv")
    assert (first.path, first.num_samples, first.sample_rate, first.text, first.speaker, first.language) == (
        *(str(recordings[0]), 8000, 8000),
        *("eins", "a", "de"),
    )
    assert (second.path, second.start, second.num_samples) == (str(recordings[2]), 4000, 12000)
    said = capsys.readouterr().err
    assert "train.tsv: 2 utterances, 0.0 minutes, 2 speakers" in said
    assert "dropped 1: no text: clip 7\n" in said
    assert "dropped 2: recording that cannot be read: " in said
    assert "dropped 1: span outside its recording: " in said
    rows = (tmp_path / "data" / "dropped.tsv").read_text("utf-8").splitlines()
    assert rows[0] == "reason\twhat"
    assert len(rows) == 5


def test_links_above_the_corpus_are_resolved_and_those_in_it_stay(recordings: list[Path], tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    (tmp_path / "disk").mkdir()
    recordings[1].rename(tmp_path / "disk" / "two.wav")
    (corpus / "more").symlink_to(tmp_path / "disk")
    (tmp_path / "link").symlink_to(corpus)
    manifests = []
    for root in (tmp_path / "link", corpus):
        preparation = Preparation(tmp_path / "data")
        clips = [Clip(root / "one.wav"), Clip(root / "more" / "two.wav")]
        preparation.write({"train": preparation.utterances(clips)}, root)
        manifests.append(read_manifest(tmp_path / "data" / "train.tsv"))
    assert [item.path for item in manifests[0]] == [str(corpus / "one.wav"), str(corpus / "more" / "two.wav")]
    assert manifests[0].digest == manifests[1].digest  # the data of a run do not change with how its folder is named


def test_headers_are_read_once_unless_the_file_changed(
    recordings: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(path: str, **how: bool) -> AudioInfo:
        read.append(path)
        return audio_info(path, **how)

    monkeypatch.setattr(headers_module, "audio_info", counted)
    clips = [Clip(path) for path in recordings]
    before = Preparation(tmp_path / "data").utterances(clips)
    assert sorted(read) == sorted(map(str, recordings))
    headers = tmp_path / "data" / "headers.tsv"
    headers.write_bytes(b"\xff nothing\n" + headers.read_bytes()[:-3])  # damaged, and as a kill can leave it
    soundfile.write(recordings[1], np.zeros(100), 8000)
    read.clear()
    after = Preparation(tmp_path / "data").utterances(clips)
    assert str(recordings[1]) in read
    assert len(read) <= 2
    assert [utterance.num_samples for utterance in after] == [before[0].num_samples, 100, before[2].num_samples]


def test_an_empty_split_is_refused_with_its_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preparation = Preparation(tmp_path / "data")
    preparation.drop("rare letters", "x")
    # It is written at once: whatever fails, nothing is lost.
    assert (tmp_path / "data" / "dropped.tsv").read_text("utf-8") == "reason\twhat\nrare letters\tx\n"
    with pytest.raises(ManifestError, match=r"train\.tsv: expected at least one utterance, found none"):
        preparation.write({"train": []}, tmp_path)
    assert "dropped 1: rare letters: x" in capsys.readouterr().err
