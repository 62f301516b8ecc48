"""LibriSpeech's recipe: its manifests, its downloads, and the published settings in its configurations."""

import hashlib
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from local_server import Handler, serving
from miniature import RECIPES, recipe_modules, run_recipe
from miniature_librispeech import make_librilight, make_tree

from speechssl.data.manifest import Manifest, read_manifest
from speechssl.errors import ManifestError, SpeechSSLError
from speechssl.frames import MaskConfig
from speechssl.train.finetune import FinetuneConfig
from speechssl.train.pretrain import PretrainConfig

RECIPE = RECIPES / "librispeech"
DATA = ["data.train=none", "data.dev=none"]


layout, prepare, download = recipe_modules("librispeech", "layout", "prepare", "download")


# Preparation


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("with space")
    make_tree(folder)
    return folder


@pytest.fixture
def copy(tree: Path, tmp_path: Path) -> Path:
    """The corpus, to be changed."""
    return Path(shutil.copytree(tree, tmp_path / "corpus"))


@pytest.fixture(scope="module")
def prepared(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    prepare.prepare(tree / "LibriSpeech", None, folder)
    return folder


@pytest.fixture(scope="module")
def manifests(prepared: Path) -> dict[str, Manifest]:
    names = ("headers", "dropped")
    return {path.stem: read_manifest(path) for path in prepared.glob("*.tsv") if path.stem not in names}


def names(manifest: Manifest) -> set[str]:
    return {Path(utterance.path).stem for utterance in manifest}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tsv") if path.name != "headers.tsv"}


def test_every_manifest_has_its_subsets(manifests: dict[str, Manifest]) -> None:
    parts = {
        name: {"/".join(Path(utterance.path).parts[-4:-2]) for utterance in manifest}
        for name, manifest in manifests.items()
    }
    train = {"train-clean-100/103", "train-clean-100/1034", "train-clean-360/100", "train-other-500/20"}
    folds = {"clean/103", "other/20"}
    assert parts.pop("pretrain_train") | parts.pop("pretrain_dev") == train
    assert parts == {
        "train_100h": {"train-clean-100/103", "train-clean-100/1034"},
        "train_960h": train,
        "dev_clean": {"dev-clean/84"},
        "dev_other": {"dev-other/116"},
        "test_clean": {"test-clean/61"},
        "test_other": {"test-other/367"},
        "train_10min": folds,
        "train_1h": folds,
        "train_10h": {*folds, "clean/1034"},
    }
    root = Path("librispeech_finetuning", "1h")
    for name, num_folds in (("train_10min", 1), ("train_1h", 6)):
        folders = {Path(*Path(utterance.path).parts[-7:-4]) for utterance in manifests[name]}
        assert folders == {root / str(fold) for fold in range(num_folds)}, name
    assert len(manifests["train_10h"]) == len(manifests["train_1h"]) + 4


def test_texts_are_lowered_and_otherwise_kept(manifests: dict[str, Manifest]) -> None:
    texts = {Path(utterance.path).stem: utterance.text for utterance in manifests["train_100h"]}
    assert texts["103-1241-0004"] == "the boys' own"
    assert "again" not in texts.values()
    for name, manifest in manifests.items():
        for utterance in manifest:
            assert utterance.language == "en"
            assert utterance.speaker == Path(utterance.path).stem.split("-")[0]
            if name.startswith("pretrain"):
                assert utterance.text is None
            else:
                assert re.fullmatch("[a-z' ]+", utterance.text or "")


def test_what_is_dropped_is_named(prepared: Path) -> None:
    rows = (prepared / "dropped.tsv").read_text("utf-8").splitlines()[1:]
    found = {(row.split("\t")[0].split(":")[0], re.findall(r"[0-9]+-[0-9]+[-.\w]*:?[0-9]*", row)[0]) for row in rows}
    texts = "103-1241.trans.txt"
    assert found == {
        ("recording that cannot be read", "103-1240-0002.flac:"),
        ("recording that cannot be read", "103-1240-0003.flac:"),
        ("recording whose name does not fit its folder", "7-7-0000.flac"),
        ("recording without a text", "103-1240-0004.flac"),
        ("recording without a text", "103-1241-0002.flac"),
        ("recording without a text", "103-1241-0003.flac"),
        ("recording without a text", "103-1241-0005.flac"),
        ("text without a recording", "103-1240-0009.flac"),
        ("second text of a recording", f"{texts}:4"),
        ("line that names no recording of its chapter", f"{texts}:5"),
        ("text of other than the letters a to z and apostrophes", f"{texts}:6"),
        ("text of other than the letters a to z and apostrophes", f"{texts}:7"),
        ("text of other than the letters a to z and apostrophes", f"{texts}:9"),
    }
    assert len(rows) == len(found)


def test_recordings_without_a_text_are_for_pretraining(manifests: dict[str, Manifest]) -> None:
    silent = {"103-1240-0004", "103-1241-0002", "103-1241-0003", "103-1241-0005"}
    pretraining = names(manifests["pretrain_train"]) | names(manifests["pretrain_dev"])
    assert pretraining == names(manifests["train_960h"]) | silent
    assert not silent & names(manifests["train_960h"])


def test_splits_share_nothing(manifests: dict[str, Manifest]) -> None:
    assert not names(manifests["pretrain_train"]) & names(manifests["pretrain_dev"])
    held_out = ["dev_clean", "dev_other", "test_clean", "test_other"]
    speakers = {name: {utterance.speaker for utterance in manifest} for name, manifest in manifests.items()}
    for name in held_out:
        for other in speakers.keys() - {name}:
            assert not speakers[name] & speakers[other]


def test_one_in_a_hundred_is_held_out_whatever_else_is_there() -> None:
    utterances = [prepare.Utterance(f"/{n}-1-{n:04d}.flac", 16_000, text="a") for n in range(20_000)]
    whole = dict(prepare._pretraining({"train-clean-100": utterances[:5000], "train-other-500": utterances[5000:]}))
    part = dict(prepare._pretraining({"train-clean-100": utterances[:5000]}))
    assert len(whole["pretrain_train"]) + len(whole["pretrain_dev"]) == 20_000
    assert 160 <= len(whole["pretrain_dev"]) <= 240
    held_out = {utterance.path for utterance in whole["pretrain_dev"]}
    assert {utterance.path for utterance in part["pretrain_dev"]} == held_out & {u.path for u in utterances[:5000]}


def test_preparing_again_changes_nothing(copy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    prepare.prepare(copy, None, folder)
    before = contents(folder)
    assert len(before) == 12
    prepare.prepare(copy / "LibriSpeech", copy / "librispeech_finetuning", folder)
    assert contents(folder) == before


def test_manifests_of_librispeech_do_not_depend_on_librilight(copy: Path, tmp_path: Path) -> None:
    prepare.prepare(copy, None, tmp_path / "with")
    shutil.rmtree(copy / "librispeech_finetuning")
    prepare.prepare(copy, None, tmp_path / "without")
    before, after = contents(tmp_path / "with"), contents(tmp_path / "without")
    assert before.keys() - after.keys() == {"train_10min.tsv", "train_1h.tsv", "train_10h.tsv"}
    assert all(before[name] == after[name] for name in after)


def test_links_to_the_corpus_and_to_librilight(copy: Path, tmp_path: Path) -> None:
    def prepared(corpus: Path, librilight: Path | None) -> dict[str, bytes]:
        prepare.prepare(corpus, librilight, tmp_path / "data")
        return {name: content for name, content in contents(tmp_path / "data").items() if name != "dropped.tsv"}

    before = prepared(copy, None)
    disk, home = tmp_path / "disk", tmp_path / "home"
    for folder in (disk, home):
        folder.mkdir()
    (disk / "LibriSpeech").symlink_to(copy / "LibriSpeech")  # its neighbor is beside what it is a link to
    assert prepared(disk, None) == before
    (disk / "librispeech_finetuning").symlink_to(copy / "librispeech_finetuning")
    for stated in (None, disk):
        assert prepared(disk, stated) == before
    (copy / "librispeech_finetuning").rename(
        home / "librispeech_finetuning"
    )  # beside the link, where download.py puts it
    (home / "LibriSpeech").symlink_to(copy / "LibriSpeech")
    assert prepared(home / "LibriSpeech", None).keys() == before.keys()
    (first, *_) = read_manifest(tmp_path / "data" / "train_10min.tsv")
    assert Path(first.path).is_relative_to(home / "librispeech_finetuning")


def test_manifests_that_no_longer_apply_are_removed(copy: Path, tmp_path: Path) -> None:
    prepare.prepare(copy, None, tmp_path / "data")
    shutil.rmtree(copy / "LibriSpeech" / "dev-other")
    shutil.rmtree(copy / "librispeech_finetuning" / "9h" / "other")
    prepare.prepare(copy, None, tmp_path / "data")
    found = {path.stem for path in (tmp_path / "data").glob("*.tsv")} - {"headers", "dropped"}
    labeled = {*prepare.LABELLED, *prepare.LIMITED} - {"dev_other", "train_10h"}
    assert found == {"pretrain_train", "pretrain_dev", *labeled}
    shutil.rmtree(copy / "librispeech_finetuning")
    for name in layout.NUM_RECORDINGS:
        if name.startswith("train"):
            shutil.rmtree(copy / "LibriSpeech" / name)
    prepare.prepare(copy, None, tmp_path / "data")
    found = {path.stem for path in (tmp_path / "data").glob("*.tsv")} - {"headers", "dropped"}
    assert found == {"dev_clean", "test_clean", "test_other"}


def test_a_missing_subset_costs_what_needs_it(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copy / "LibriSpeech" / "train-other-500")
    shutil.rmtree(copy / "LibriSpeech" / "dev-clean" / "84")  # there, but empty
    shutil.rmtree(copy / "librispeech_finetuning" / "9h" / "other")
    shutil.rmtree(copy / "librispeech_finetuning" / "1h" / "3")
    prepare.prepare(copy, None, tmp_path / "data")
    found = {path.stem for path in (tmp_path / "data").glob("*.tsv")} - {"headers", "dropped"}
    assert found == {
        *("pretrain_train", "pretrain_dev", "train_100h", "dev_other", "test_clean", "test_other", "train_10min")
    }
    said = capsys.readouterr().err.splitlines()
    assert "no train_960h: without recordings in train-other-500" in said
    assert "no dev_clean: without recordings in dev-clean" in said
    assert "no train_1h: without recordings in 1h/3/clean, 1h/3/other" in said
    assert "no train_10h: without recordings in 1h/3/clean, 1h/3/other, 9h/other" in said
    assert "pretrain_train, pretrain_dev: without train-other-500, which the published models have seen" in said
    assert f"{copy}/LibriSpeech/train-clean-100: 11 recordings, 28539 were published" in said


def test_labels_alone_are_enough(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for subset in layout.NUM_RECORDINGS:
        if not subset.startswith("dev"):
            shutil.rmtree(copy / "LibriSpeech" / subset)
    prepare.prepare(copy, None, tmp_path / "data")
    found = {path.stem for path in (tmp_path / "data").glob("*.tsv")} - {"headers", "dropped"}
    assert found == {"dev_clean", "dev_other", "train_10min", "train_1h", "train_10h"}
    assert "no pretrain_train, pretrain_dev: train-clean-100, train-clean-360" in capsys.readouterr().err


def test_a_chapter_without_texts_is_named(copy: Path, tmp_path: Path) -> None:
    file = copy / "LibriSpeech" / "train-clean-360" / "100" / "121669" / "100-121669.trans.txt"
    file.unlink()
    prepare.prepare(copy, None, tmp_path / "data")
    assert f"chapter without its file of texts\t{file}" in (tmp_path / "data" / "dropped.tsv").read_text("utf-8")
    assert not any(name.startswith("100-") for name in names(read_manifest(tmp_path / "data" / "train_960h.tsv")))


def test_a_manifest_without_texts_is_refused(copy: Path, tmp_path: Path) -> None:
    for file in (copy / "LibriSpeech" / "dev-other").rglob("*.trans.txt"):
        file.unlink()
    with pytest.raises(ManifestError, match=r"dev_other\.tsv: expected at least one utterance, found none"):
        prepare.prepare(copy, None, tmp_path / "data")


@pytest.mark.parametrize("stated", ["corpus", "corpus/LibriSpeech", "link", "link_above/LibriSpeech"])
def test_the_corpus_is_found_from_above_and_through_links(copy: Path, tmp_path: Path, stated: str) -> None:
    (tmp_path / "link").symlink_to(copy / "LibriSpeech")
    (tmp_path / "link_above").symlink_to(copy)
    prepare.prepare(tmp_path / stated, None, tmp_path / "data")
    assert len(read_manifest(tmp_path / "data" / "train_100h.tsv")) == 7


def test_librilight_is_found_elsewhere(copy: Path, tmp_path: Path) -> None:
    (copy / "librispeech_finetuning").rename(tmp_path / "librispeech_finetuning")
    for number, stated in enumerate((tmp_path, tmp_path / "librispeech_finetuning")):
        prepare.prepare(copy, stated, tmp_path / f"data{number}")
        assert len(read_manifest(tmp_path / f"data{number}" / "train_10min.tsv")) == 4


def test_a_corpus_in_another_format_is_refused(copy: Path, tmp_path: Path) -> None:
    for recording in (copy / "LibriSpeech").rglob("*.flac"):
        recording.rename(recording.with_suffix(".wav"))
    with pytest.raises(
        ManifestError, match=r"LibriSpeech: expected recordings as SUBSET/SPEAKER/CHAPTER/\*\.flac, found none"
    ):
        prepare.prepare(copy, None, tmp_path / "data")


def test_wrong_folders_are_one_line(copy: Path, tmp_path: Path) -> None:
    expected = "expected the folder LibriSpeech or the one above it, with some of train-clean-100, .*, found"
    with pytest.raises(ManifestError, match=rf"^CORPUS={tmp_path}/nowhere: {expected} none$"):
        prepare.prepare(tmp_path / "nowhere", None, tmp_path / "data")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match=rf"{expected} a folder with nothing$"):
        prepare.prepare(tmp_path / "empty", None, tmp_path / "data")
    with pytest.raises(ManifestError, match=rf"{expected} a file$"):
        prepare.prepare(copy / "LibriSpeech" / "README.TXT", None, tmp_path / "data")
    with pytest.raises(
        ManifestError, match=r"^LIBRILIGHT=.*: expected the folder librispeech_finetuning .* with BOOKS"
    ):
        prepare.prepare(copy, copy / "LibriSpeech", tmp_path / "data")


# Downloads


@dataclass
class Server:
    """Serves ``files`` with or without Range, and breaks off as told; remembers the requests."""

    files: dict[str, bytes] = field(default_factory=dict)
    knows_range: bool = True
    break_off_after: list[int] = field(default_factory=list)  # bytes of the next answers
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


class _Handler(Handler):
    mirror: Server

    def respond(self) -> None:
        stated, mirror = self.headers["Range"], self.mirror
        mirror.requests.append((self.path, stated))
        content = mirror.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int(stated.removeprefix("bytes=").removesuffix("-")) if stated and mirror.knows_range else 0
        if start and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        limit = mirror.break_off_after.pop(0) if mirror.break_off_after else len(content)
        self.wfile.write(content[start : start + limit])


@pytest.fixture
def server() -> Iterator[Server]:
    mirror = Server()
    with serving(_Handler, mirror=mirror) as mirror.url:
        yield mirror


@pytest.fixture
def content(server: Server, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The archive of dev-clean, on the server, with its checksum in the place of the published one."""
    packed = pack({"LibriSpeech/dev-clean/84/1/84-1-0000.flac": os.urandom(5000), "LibriSpeech/README.TXT": b"read me"})
    publish(server, monkeypatch, "dev-clean", packed)
    return packed


def pack(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def publish(server: Server, monkeypatch: pytest.MonkeyPatch, name: str, packed: bytes) -> None:
    old = download.ARCHIVES[name]
    new = download.Archive(old.name, hashlib.sha256(packed).hexdigest(), old.gigabytes, old.folder)
    monkeypatch.setitem(download.ARCHIVES, name, new)
    server.files[f"/{old.name}"] = packed


def fetch(folder: Path, server: Server, *parts: str) -> None:
    download.download_parts(folder, parts or ("dev-clean",), server.url, f"{server.url}/")


def test_a_subset_is_downloaded_once(
    tmp_path: Path, server: Server, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(tmp_path / "new", server)
    root = tmp_path / "new" / "LibriSpeech"
    assert (root / "dev-clean" / "84" / "1" / "84-1-0000.flac").stat().st_size == 5000
    assert (root / "README.TXT").read_bytes() == b"read me"
    assert {path.name for path in root.iterdir()} == {"dev-clean", "README.TXT"}
    assert (tmp_path / "new" / "dev-clean.tar.gz").read_bytes() == content
    assert not list((tmp_path / "new").glob("*.partial"))
    assert "0.3 GB to download (dev-clean)" in capsys.readouterr().err
    fetch(root, server)  # the corpus may be stated either way
    assert "nothing to download" in capsys.readouterr().err
    assert server.requests == [("/dev-clean.tar.gz", None)]


def test_a_broken_connection_is_taken_up(
    tmp_path: Path, server: Server, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    server.break_off_after = [1000, 500]
    fetch(tmp_path, server)
    assert [stated for _, stated in server.requests] == [None, "bytes=1000-", "bytes=1500-"]
    assert (tmp_path / "dev-clean.tar.gz").read_bytes() == content
    assert "broke off after 1500 bytes" in capsys.readouterr().err


def test_a_killed_download_goes_on(tmp_path: Path, server: Server, content: bytes) -> None:
    (tmp_path / "dev-clean.tar.gz.partial").write_bytes(content[:2000])
    fetch(tmp_path, server)
    assert [stated for _, stated in server.requests] == ["bytes=2000-"]
    assert (tmp_path / "LibriSpeech" / "dev-clean").is_dir()


def test_a_connection_that_brings_nothing_ends_it(tmp_path: Path, server: Server, content: bytes) -> None:
    server.break_off_after = [1000, 0, 0]
    with pytest.raises(SpeechSSLError, match=r"broke off after 1000 bytes: .*; run again to go on"):
        fetch(tmp_path, server)
    assert (tmp_path / "dev-clean.tar.gz.partial").read_bytes() == content[:1000]
    assert len(server.requests) == 2
    server.break_off_after = []
    fetch(tmp_path, server)
    assert server.requests[-1] == ("/dev-clean.tar.gz", "bytes=1000-")


def test_a_server_without_ranges_starts_again(
    tmp_path: Path, server: Server, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    server.knows_range = False
    (tmp_path / "dev-clean.tar.gz.partial").write_bytes(b"?" * 2000)
    fetch(tmp_path, server)
    assert (tmp_path / "dev-clean.tar.gz").read_bytes() == content
    assert "the server cannot go on after 2000 bytes, from the start again" in capsys.readouterr().err


def test_a_server_without_ranges_that_breaks_off_ends(tmp_path: Path, server: Server, content: bytes) -> None:
    server.knows_range = False
    server.break_off_after = [1000] * 5
    with pytest.raises(SpeechSSLError, match="broke off after 1000 bytes"):
        fetch(tmp_path, server)
    assert len(server.requests) == 2


def test_a_wrong_checksum_deletes_nothing(tmp_path: Path, server: Server, content: bytes) -> None:
    damaged = content[:-1] + b"?"
    server.files["/dev-clean.tar.gz"] = damaged
    for _ in range(2):  # the second time, nothing is left to download
        with pytest.raises(
            SpeechSSLError, match=r"partial: expected the SHA-256 \w{64}, found \w{64}; the file is kept"
        ):
            fetch(tmp_path, server)
        assert (tmp_path / "dev-clean.tar.gz.partial").read_bytes() == damaged
        assert not (tmp_path / "LibriSpeech").exists()
    assert [stated for _, stated in server.requests] == [None, f"bytes={len(content)}-"]


def test_what_the_mirror_lacks_is_one_line(tmp_path: Path, server: Server) -> None:
    expected = rf"^{server.url}/test-other\.tar\.gz: expected an archive, found HTTP 404 Not Found$"
    with pytest.raises(SpeechSSLError, match=expected):
        fetch(tmp_path, server, "test-other")


def test_no_mirror_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(SpeechSSLError, match=rf"^{url}/dev-clean\.tar\.gz: broke off after 0 bytes: .*refused"):
        download.download_parts(tmp_path, ["dev-clean"], url, "")


def test_an_archive_that_is_here_is_extracted(tmp_path: Path, server: Server, content: bytes) -> None:
    (tmp_path / "dev-clean.tar.gz").write_bytes(content)
    left_over = tmp_path / "LibriSpeech" / ".dev-clean.extracting" / "LibriSpeech" / "dev-clean" / "half"
    left_over.mkdir(parents=True)  # by an extraction that was killed
    fetch(tmp_path, server)
    assert server.requests == []
    assert {path.name for path in (tmp_path / "LibriSpeech" / "dev-clean").iterdir()} == {"84"}


@pytest.mark.parametrize("name", ["../../evil", "/{folder}/evil", "LibriSpeech/../../../evil", "a\nb"])
def test_an_archive_cannot_write_elsewhere(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    name = name.format(folder=tmp_path)
    good = "LibriSpeech/dev-clean/84/1/84-1-0000.flac"
    publish(server, monkeypatch, "dev-clean", pack({good: b"good", name: b"evil"}))
    with pytest.raises(SpeechSSLError) as caught:
        fetch(tmp_path / "in", server)
    archive, target = tmp_path / "in" / "dev-clean.tar.gz", tmp_path / "in" / "LibriSpeech" / ".dev-clean.extracting"
    assert str(caught.value) == f"{archive}: expected a name inside {target}, found {name!r}"
    files = {path for path in tmp_path.rglob("*") if not path.is_dir()}
    assert files == {archive, archive.with_name(".librispeech_download.lock")}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_an_archive_cannot_link_elsewhere(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, kind: bytes
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        link = tarfile.TarInfo("LibriSpeech/dev-clean")
        link.type, link.linkname = kind, "../../dev-other"
        archive.addfile(link)
    publish(server, monkeypatch, "dev-clean", buffer.getvalue())
    with pytest.raises(SpeechSSLError, match=r"expected files and folders inside it, found LibriSpeech/dev-clean$"):
        fetch(tmp_path / "in", server)
    assert not list(tmp_path.rglob("dev-clean"))


def test_an_archive_of_something_else_is_refused(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, monkeypatch, "dev-clean", pack({"LibriSpeech/dev-other/84-1-0000.flac": b""}))
    with pytest.raises(SpeechSSLError, match=r"expected a folder LibriSpeech/dev-clean in the archive, found none"):
        fetch(tmp_path, server)
    assert not (tmp_path / "LibriSpeech" / "dev-clean").exists()


def test_librilight_lands_where_preparation_looks(
    tree: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_librilight(tmp_path / "made" / "librispeech_finetuning")
    files = [path for path in (tmp_path / "made").rglob("*") if path.is_file()]
    packed = pack({str(path.relative_to(tmp_path / "made")): path.read_bytes() for path in files})
    publish(server, monkeypatch, "librispeech_finetuning", packed)
    shutil.copytree(tree / "LibriSpeech", tmp_path / "LibriSpeech")
    fetch(tmp_path, server, "all")
    assert server.requests == [("/librispeech_finetuning.tgz", None)]
    prepare.prepare(tmp_path, None, tmp_path / "data")
    assert (tmp_path / "data" / "train_10h.tsv").is_file()


def test_two_downloads_do_not_meet(tmp_path: Path, server: Server, content: bytes) -> None:
    program = (
        "import fcntl, sys; lock = open(sys.argv[1], 'a'); fcntl.lockf(lock, fcntl.LOCK_EX); "
        "print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / ".librispeech_download.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(SpeechSSLError, match="another process is downloading to this folder"):
            fetch(tmp_path, server)
        other.communicate("")
    assert server.requests == []


def test_every_subset_has_an_archive_with_a_checksum() -> None:
    assert download.ARCHIVES.keys() == {*layout.NUM_RECORDINGS, "librispeech_finetuning"}
    assert all(re.fullmatch("[0-9a-f]{64}", archive.sha256) for archive in download.ARCHIVES.values())
    assert len({archive.sha256 for archive in download.ARCHIVES.values()}) == len(download.ARCHIVES)
    with pytest.raises(SpeechSSLError, match=r"^DOWNLOAD=dev-clean dev: expected all or some of train-clean-100"):
        download.download_parts(Path("/nowhere"), ["dev-clean", "dev"], "", "")


# run.sh


def test_nothing_is_downloaded_unasked_and_data_are_checked(tree: Path, tmp_path: Path, server: Server) -> None:
    out = tmp_path / "with space"
    result = run_recipe("librispeech", out, CORPUS=str(tree), MIRROR=server.url, TO="check", LABELS="10min")
    assert result.returncode == 0, result.stderr
    assert server.requests == []
    assert "0 errors" in (out / "check_pretrain.txt").read_text("utf-8")
    report = (out / "check.txt").read_text("utf-8")
    assert "0 errors" in report
    assert all(
        f"{name}.tsv" in report for name in ("train_10min", "dev_clean", "dev_other", "test_clean", "test_other")
    )


@pytest.mark.parametrize("lacking", ["dev_other", "train_1h"])
def test_what_fine_tuning_needs_is_missed_before_pretraining(tmp_path: Path, prepared: Path, lacking: str) -> None:
    shutil.copytree(prepared, tmp_path / "data")
    (tmp_path / "data" / f"{lacking}.tsv").unlink()
    result = run_recipe("librispeech", tmp_path, FROM="check", TO="check", LABELS="1h")
    expected = "expected a manifest for LABELS=1h, found none; prepare says why"
    assert (result.returncode, result.stderr.splitlines()) == (
        1,
        ["== check", f"error: {tmp_path}/data/{lacking}.tsv: {expected}"],
    )


def test_downloads_ask_the_mirror(tmp_path: Path, server: Server) -> None:
    settings = {
        "CORPUS": str(tmp_path / "a b"),
        "MIRROR": server.url,
        "DOWNLOAD": "dev-other dev-clean",
        "TO": "download",
    }
    result = run_recipe("librispeech", tmp_path / "out", **settings)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        f"error: {server.url}/dev-clean.tar.gz: expected an archive, found HTTP 404 Not Found"
    )
    assert "0.7 GB to download (dev-clean, dev-other)" in result.stderr


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "error: CORPUS=: expected the folder LibriSpeech or the one above it, found nothing"),
        ({"CORPUS": "/nowhere"}, "error: CORPUS=/nowhere: expected the folder LibriSpeech"),
        ({"MODEL": "huge"}, "error: MODEL=huge: expected one of base large"),
        ({"LABELS": "2h"}, "error: LABELS=2h: expected one of 10min 1h 10h 100h 960h"),
        ({"LABELS": "1h 10h"}, "error: LABELS=1h 10h: expected one of 10min 1h 10h 100h 960h"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path: Path, settings: dict[str, str], expected: str) -> None:
    result = run_recipe("librispeech", tmp_path, **settings)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(expected)


# Configurations: fairseq's examples/wav2vec/config/finetuning, the large ones of the model pretrained on LV-60k.

PUBLISHED = {  # updates, rate, masks of frames and of channels, layer drop, updates of the head alone, batches, samples
    "base_10min": (13_000, 5e-5, 0.65, 0.25, 0.1, 10_000, 2 * 4, 3_200_000),
    "base_1h": (13_000, 5e-5, 0.65, 0.25, 0.1, 10_000, 2 * 4, 3_200_000),
    "base_10h": (20_000, 5e-5, 0.65, 0.5, 0.05, 10_000, 2 * 4, 3_200_000),
    "base_100h": (80_000, 3e-5, 0.65, 0.5, 0.1, 0, 2 * 4, 3_200_000),
    "base_960h": (320_000, 1e-4, 0.5, 0.1, 0.1, 0, 8 * 1, 3_200_000),
    "large_10min": (13_000, 1e-4, 0.65, 0.25, 0.1, 10_000, 4 * 5, 1_280_000),
    "large_1h": (13_000, 3e-4, 0.75, 0.25, 0.1, 10_000, 4 * 5, 1_280_000),
    "large_10h": (20_000, 1e-4, 0.75, 0.25, 0.1, 10_000, 4 * 5, 1_280_000),
    "large_100h": (80_000, 3e-5, 0.5, 0.5, 0.1, 10_000, 4 * 5, 1_280_000),
    "large_960h": (320_000, 3e-5, 0.5, 0.25, 0.1, 10_000, 24 * 1, 1_280_000),
}


def test_every_configuration_is_in_the_table() -> None:
    assert {file.stem for file in (RECIPE / "finetune").glob("*.toml")} == {"base", "large", *PUBLISHED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_finetuning_is_as_published(name: str) -> None:
    files = [RECIPE / "finetune" / f"{name.split('_')[0]}.toml", RECIPE / "finetune" / f"{name}.toml"]
    config = FinetuneConfig.load(files, [*DATA, "init=none"])
    updates, rate, mask_prob, channel_prob, layer_drop, head_only, num_batches, samples = PUBLISHED[name]
    regularization, trainer = config.regularization, config.trainer
    assert (trainer.num_steps, config.optimizer.learning_rate, config.head_only_steps) == (updates, rate, head_only)
    time_mask, channel_mask = regularization.time_mask, regularization.channel_mask
    assert (time_mask.span_frames, time_mask.min_spans, channel_mask.span_frames, channel_mask.min_spans) == (
        10,
        2,
        64,
        0,
    )
    assert time_mask.start_prob * 10 == pytest.approx(mask_prob)
    assert channel_mask.start_prob * 64 == pytest.approx(channel_prob)
    assert regularization.layer_drop == layer_drop
    assert trainer.microbatches == num_batches
    if name.startswith("large"):  # base: what fairseq's multiples of 8 utterances leave, in test_published_batches.py
        assert config.batches.seconds * 16_000 == samples
    assert time_mask.equal_counts
    assert channel_mask.equal_counts
    # What fairseq's files have in common.
    dropouts = regularization.dropout, regularization.attention_dropout, regularization.input_dropout
    assert (*dropouts, regularization.activation_dropout) == (0.0, 0.0, 0.0, 0.1)
    assert regularization.speeds == (1.0,)
    assert config.feature_encoder_is_frozen
    optimizer, schedule = config.optimizer, config.schedule
    assert (optimizer.betas, optimizer.epsilon, optimizer.weight_decay) == ((0.9, 0.98), 1e-8, 0.0)
    assert (schedule.kind, schedule.warmup, schedule.hold, schedule.end_scale) == ("tri_stage", 0.1, 0.4, 0.05)
    assert "CC-BY-4.0" in config.data.license


@pytest.mark.parametrize(
    ("model", "updates", "warmup", "rate", "num_batches", "samples", "longest", "most"),
    [
        ("base", 400_000, 32_000, 5e-4, 64, 1_400_000, 250_000, None),
        ("large", 1_000_000, 32_000, 3e-4, 128, 1_200_000, 320_000, 4),  # another rate than the file's: README.md
    ],
)
def test_pretraining_is_as_published(
    model: str, updates: int, warmup: int, rate: float, num_batches: int, samples: int, longest: int, most: int | None
) -> None:
    config = PretrainConfig.load([RECIPES / "models" / f"wav2vec2_{model}.toml", RECIPE / "pretrain.toml"], DATA)
    trainer, batches, optimizer = config.trainer, config.batches, config.optimizer
    assert (trainer.num_steps, trainer.microbatches, optimizer.learning_rate) == (updates, num_batches, rate)
    assert config.schedule.warmup * updates == pytest.approx(warmup)
    assert (batches.seconds * 16_000, batches.max_seconds * 16_000) == (samples, longest)
    assert (batches.min_seconds * 16_000, batches.max_utterances) == (32_000, most)
    assert config.objective.mask == MaskConfig(equal_counts=True)
    assert (optimizer.betas, optimizer.epsilon, optimizer.weight_decay) == ((0.9, 0.98), 1e-6, 0.01)
    assert optimizer.max_gradient_norm is None
    assert "CC-BY-4.0" in config.data.license
