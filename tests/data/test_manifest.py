import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from speechssl.data import rows as rows_module
from speechssl.data.manifest import Utterance, read_manifest, read_utterance, write_manifest
from speechssl.data.recording import read_audio
from speechssl.data.scan import scan_folder
from speechssl.errors import AudioError, ManifestError

CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\r\n"), min_size=1, max_size=12)
NAMES = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\"), min_size=1, max_size=8
).filter(lambda name: name not in (".", ".."))
ROOT = Path(__file__).parent
UTTERANCES = st.builds(
    Utterance,
    path=st.lists(NAMES, min_size=1, max_size=3).map(lambda names: str(ROOT.joinpath(*names))),
    num_samples=st.integers(1, 10**12),
    start=st.integers(0, 10**12),
    sample_rate=st.integers(1, 384_000),
    text=st.none() | CELLS,
    speaker=st.none() | CELLS,
    language=st.none() | CELLS,
)


@given(st.lists(UTTERANCES, min_size=1, max_size=5))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, utterances: list[Utterance]) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.tsv"
    write_manifest(path, utterances, ROOT)
    manifest = read_manifest(path)
    assert list(manifest) == utterances
    assert manifest.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert manifest.where(len(utterances) - 1) == f"{path}:{2 + len(utterances)}"


CELL = st.text(st.sampled_from("aé😀 \x85\u2028\0\r\x1f|"), max_size=4)


def read_plainly(content: str) -> list[Utterance]:
    """What a reader of lines finds; a ValueError where something is wrong."""
    lines = content.removesuffix("\n").split("\n")
    _, header, *rows = [line.removesuffix("\r") for line in lines]
    utterances = []
    for row in rows:
        cells = dict(zip(header.split("\t"), row.split("\t"), strict=True))
        number, start = cells["num_samples"], cells.get("start") or "0"
        is_right = all(re.fullmatch("[0-9]{1,18}", cell) for cell in (number, start))
        if not (is_right and int(number) and cells["path"]) or "\0" in cells["path"]:
            raise ValueError(row)
        path = str(ROOT / "x" / cells["path"])[: -len(cells["path"])] + cells["path"]
        utterances.append(Utterance(path, int(number), int(start), text=cells.get("text") or None))
    return utterances


@given(
    st.permutations(["path", "num_samples", "start", "text"]),
    st.lists(
        st.fixed_dictionaries(
            {
                "path": st.sampled_from(["a", "a", "é.wav", "b:1:2", "\0", ""]),
                "num_samples": st.sampled_from(["1", "16000", "007", "9" * 15, "0", "", "x"]),
                "start": st.sampled_from(["", "0", "5", "1" * 15, "-0"]),
                "text": CELL,
            }
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.integers(1, 40),
)
def test_blocks_of_bytes_hold_what_lines_do(
    tmp_path_factory: pytest.TempPathFactory,
    names: list[str],
    rows: list[dict[str, str]],
    line_end: str,
    is_whole: bool,
    num_bytes: int,
) -> None:
    lines = [str(ROOT / "x"), "\t".join(names), *("\t".join(row[name] for name in names) for row in rows)]
    content = line_end.join(lines) + line_end * is_whole
    path = tmp_path_factory.getbasetemp() / "blocks.tsv"
    path.write_text(content, "utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "_BYTES_AT_ONCE", num_bytes)
        patch.setattr(Path, "is_dir", lambda path: True)
        try:
            expected = read_plainly(content)
        except ValueError:
            with pytest.raises(ManifestError, match=r"blocks.tsv:[0-9]+: expected "):
                read_manifest(path)
        else:
            assert list(read_manifest(path)) == expected


def test_columns_are_those_of_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    utterances = [
        Utterance(str(tmp_path / "a.wav"), n, 0, rate)
        for n, rate in ((1, 44_100), (10**15, 8000), (10**15 - 1, 44_100), (7, 8000), (3, 2**31 - 1))
    ]
    write_manifest(path, utterances, ".")
    manifest = read_manifest(path)
    assert manifest.num_output_samples.tolist() == [utterance.num_output_samples for utterance in utterances]
    assert manifest.seconds.tolist() == [utterance.seconds for utterance in utterances]


def test_a_manifest_and_its_folder_can_move(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    (first / "lists").mkdir(parents=True)
    utterance = Utterance(str(first / "audio" / "a.wav"), 10, text="привет", language="ru")
    write_manifest(first / "lists" / "train.tsv", [utterance], "..")
    assert (first / "lists" / "train.tsv").read_text("utf-8") == (
        "..\npath\tnum_samples\ttext\tlanguage\naudio/a.wav\t10\tпривет\tru\n"
    )
    first.rename(second)
    assert Path(read_manifest(second / "lists" / "train.tsv")[0].path).resolve() == second / "audio" / "a.wav"


def test_columns_of_defaults_are_left_out_and_empty_cells_are_defaults(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    write_manifest(path, [Utterance(str(tmp_path / "a.wav"), 5), Utterance(str(tmp_path / "b.wav"), 7)], ".")
    assert path.read_text() == ".\npath\tnum_samples\na.wav\t5\nb.wav\t7\n"
    path.write_bytes(
        b"\xef\xbb\xbf.\r\ntext\tnum_samples\tstart\tsample_rate\tpath\r\n\t5\t\t\ta.wav\r\nhi\t6\t7\t8000\tb.wav"
    )
    assert list(read_manifest(path)) == [
        Utterance(str(tmp_path / "a.wav"), 5),
        Utterance(str(tmp_path / "b.wav"), 6, 7, 8000, "hi"),
    ]


def test_durations() -> None:
    utterance = Utterance("a.wav", 44_101, sample_rate=44_100)
    assert utterance.num_output_samples == 16_001
    assert utterance.seconds == pytest.approx(1.0, abs=1e-4)


HEADER = "path\tnum_samples\ttext\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ": expected a manifest, found an empty file"),
        (".\n", ": expected at least one utterance, found none"),
        (f".\n{HEADER}", ": expected at least one utterance, found none"),
        (f"nowhere\n{HEADER}a.wav\t1\tx\n", ":1: expected the root folder of the recordings, found 'nowhere'"),
        (f"\n{HEADER}a.wav\t1\tx\n", ":1: expected the root folder of the recordings, found ''"),
        (
            f".\n{HEADER}a.wav\t1\tx\nb.wav\t1\n",
            ":4: expected 3 tab-separated columns (path, num_samples, text), found 2",
        ),
        (
            f".\n{HEADER}a.wav\t1\tx\ty\n",
            ":3: expected 3 tab-separated columns (path, num_samples, text), found 4",
        ),
        (
            f".\n{HEADER}a.wav\t1\tx\tb.wav\t1\tx\n",
            ":3: expected 3 tab-separated columns (path, num_samples, text), found 6",
        ),
        (f".\n{HEADER}\n", ":3: expected 3 tab-separated columns (path, num_samples, text), found 1"),
        (
            ".\npath\tnum_samples\twords\na.wav\t1\tx\n",
            ":2: expected column names (path, num_samples, start, sample_rate, text, speaker, language), found 'words'",
        ),
        (".\npath\tpath\tnum_samples\n", ": expected at least one utterance, found none"),
        (".\npath\tpath\tnum_samples\na\ta\t1\n", ":2: expected each column once, found 'path' 2 times"),
        (".\npath\ttext\na.wav\tx\n", ":2: expected a column 'num_samples', found path, text"),
        (".\nnum_samples\n5\n", ":2: expected a column 'path', found num_samples"),
        (f".\n{HEADER}a.wav\t1.5\tx\n", ":3: expected num_samples to be an integer of at least 1, found '1.5'"),
        (f".\n{HEADER}a.wav\t0\tx\n", ":3: expected num_samples to be an integer of at least 1, found '0'"),
        (f".\n{HEADER}a.wav\t\tx\n", ":3: expected num_samples to be an integer of at least 1, found ''"),
        (f".\n{HEADER}a.wav\t1_0\tx\n", ":3: expected num_samples to be an integer of at least 1, found '1_0'"),
        (f".\n{HEADER}\t1\tx\n", ":3: expected a path, found nothing"),
        (f".\n{HEADER}a.wav\t1\tx\nb\0.wav\t1\tx\n", ":4: expected a path, found 'b\\x00.wav'"),
        (
            f".\n{HEADER}a.wav\t{10**25}\tx\n",
            f":3: expected num_samples to be an integer of at most 1000000000000000, found '{10**25}'",
        ),
        (
            ".\npath\tnum_samples\tstart\na.wav\t1\t-1\n",
            ":3: expected start to be an integer of at least 0, found '-1'",
        ),
        (
            ".\npath\tnum_samples\tsample_rate\na.wav\t1\t0\n",
            ":3: expected sample_rate to be an integer of at least 1, found '0'",
        ),
        (
            f".\n{HEADER}a.wav\t{10**16}\tx\n",
            f":3: expected num_samples to be an integer of at most 1000000000000000, found '{10**16}'",
        ),
        (
            f".\n{HEADER}a.wav\t1\tx\na.wav\t0\tx\n\t1\tx\na.wav\n",
            ":4: expected num_samples to be an integer of at least 1, found '0'",
        ),
        (
            f".\n{HEADER}a.wav\t1\tx\na.wav\n\t1\tx\n",
            ":4: expected 3 tab-separated columns (path, num_samples, text), found 1",
        ),
        (".\na.wav\t10\nb.wav\tx\n", ":3: expected num_samples to be an integer of at least 1, found 'x'"),
    ],
)
def test_malformed_manifests(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "train.tsv"
    path.write_text(content)
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert str(caught.value) == f"{path}{message}"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"train.tsv: expected a file, found none$"):
        read_manifest(tmp_path / "train.tsv")
    with pytest.raises(ManifestError, match=r"expected a file, found a folder$"):
        read_manifest(tmp_path)
    path = tmp_path / "latin.tsv"
    path.write_bytes(f".\n{HEADER}a.wav\t1\tcaf\xe9\n".encode("latin-1"))
    with pytest.raises(ManifestError, match=r"latin.tsv:3: expected UTF-8, found the byte 0xe9$"):
        read_manifest(path)
    path.write_bytes(f".\r\n{HEADER}a.wav\t1\té\nb.wav\t1\t\r\n".encode() + b"\xffc.wav\t1\t\nd.wav\t1\t\xfe\n")
    with pytest.raises(ManifestError, match=r"latin.tsv:5: expected UTF-8, found the byte 0xff$"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("utterances", "message"),
    [
        ([], "expected at least one utterance, found none"),
        ([Utterance("/elsewhere/a.wav", 1)], "expected a recording below {root}, found /elsewhere/a.wav"),
        (
            [Utterance("{root}/a.wav", 1, text="a\tb")],
            "expected cells in UTF-8 without tabs and line breaks, found 'a\\tb'",
        ),
        (
            [Utterance("{root}/a.wav", 1, speaker="a\nb")],
            "expected cells in UTF-8 without tabs and line breaks, found 'a\\nb'",
        ),
        (
            [Utterance("{root}/\udcff.wav", 1)],
            "expected cells in UTF-8 without tabs and line breaks, found '\\udcff.wav'",
        ),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, utterances: list[Utterance], message: str) -> None:
    path = tmp_path / "a.tsv"
    placed = [Utterance(u.path.replace("{root}", str(tmp_path)), 1, text=u.text, speaker=u.speaker) for u in utterances]
    with pytest.raises(ManifestError) as caught:
        write_manifest(path, placed, tmp_path)
    assert str(caught.value) == f"{path}: {message.replace('{root}', str(tmp_path))}"
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ManifestError, match=r"a.tsv: "):
        write_manifest(tmp_path / "file" / "a.tsv", [Utterance(str(tmp_path / "a.wav"), 1)], tmp_path)


def test_fairseq_manifests(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text(f"{tmp_path}\na.flac\t100\nclips.zip:10:20\t200\n")
    bare = read_manifest(path)
    assert list(bare) == [Utterance(str(tmp_path / "a.flac"), 100), Utterance(str(tmp_path / "clips.zip:10:20"), 200)]
    assert bare.where(0) == f"{path}:2"

    (tmp_path / "train.wrd").write_text("HELLO YOU\nÉTÉ\n")
    assert [utterance.text for utterance in read_manifest(path)] == ["HELLO YOU", "ÉTÉ"]
    (tmp_path / "train.ltr").write_text("H E L L O | M E |\nÉ T É |\n")
    labeled = read_manifest(path)
    assert [utterance.text for utterance in labeled] == ["HELLO ME", "ÉTÉ"]
    assert labeled.digest != bare.digest

    (tmp_path / "train.ltr").write_text("H E |\n")
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert str(caught.value) == f"{tmp_path / 'train.ltr'}: expected 2 lines, one a row of {path}, found 1"


def test_reading_an_utterance(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 48_000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 48_000, subtype="FLOAT")
    utterance = Utterance(str(tmp_path / "a.wav"), 4801, start=900, sample_rate=48_000)
    waveform = read_utterance(utterance)
    assert len(waveform) == utterance.num_output_samples == 1601
    np.testing.assert_array_equal(waveform, read_audio(tmp_path / "a.wav", start=900, num_samples=4801))
    with pytest.raises(AudioError, match=r"a.wav: expected 16000 samples a second, found 48000$"):
        read_utterance(Utterance(str(tmp_path / "a.wav"), 100))
    with pytest.raises(AudioError, match=r"a.wav: expected 4801 samples from sample 47000 on, found 1000$"):
        read_utterance(Utterance(str(tmp_path / "a.wav"), 4801, start=47_000, sample_rate=48_000))


def test_scanning_a_folder(tmp_path: Path) -> None:
    (tmp_path / "b" / ".hidden").mkdir(parents=True)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 1000)
    for name in ("b/2.FLAC", "b/1.wav", "a.ogg", ".skipped.wav", "b/.hidden/3.wav"):
        soundfile.write(tmp_path / name, noise, 8000, format=name.split(".")[-1].upper())
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "b" / "1.txt").write_text("  hello\nyou \n", "utf-8")
    (tmp_path / "bad.wav").write_text("no audio")
    (tmp_path / "latin.wav").write_bytes((tmp_path / "b" / "1.wav").read_bytes())
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "tab\t.wav").write_bytes((tmp_path / "b" / "1.wav").read_bytes())
    (tmp_path / "notes.md").write_text("# Not audio")
    utterances, failures = scan_folder(tmp_path)
    assert utterances == [
        Utterance(str(tmp_path / "a.ogg"), 1000, sample_rate=8000),
        Utterance(str(tmp_path / "b" / "1.wav"), 1000, sample_rate=8000, text="hello you"),
        Utterance(str(tmp_path / "b" / "2.FLAC"), 1000, sample_rate=8000),
    ]
    bad, latin, tab = map(str, failures)
    assert bad.startswith(f"{tmp_path / 'bad.wav'}: expected audio, found")
    assert latin.startswith(f"{tmp_path / 'latin.txt'}:1: expected UTF-8 or UTF-16, found the byte ")
    assert tab.endswith("tab\\t.wav': expected a path in UTF-8 without tabs and line breaks")
    with pytest.raises(ManifestError, match=r"nowhere: expected a folder, found none$"):
        scan_folder(tmp_path / "nowhere")
