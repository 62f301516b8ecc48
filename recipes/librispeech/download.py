"""Download parts of LibriSpeech: `python download.py CORPUS (all | NAME...) [--mirror URL] [--librilight-mirror URL]`.

What is there already is skipped, and a download that was broken off goes on.
"""

import argparse
import fcntl
import hashlib
import shutil
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from layout import FINETUNING, corpus_folder, stated_folder

from speechssl.errors import SpeechSSLError
from speechssl.files import path_inside
from speechssl.terminal import exit_on_error, print_status

MIRROR = "https://www.openslr.org/resources/12"
LIBRILIGHT_MIRROR = "https://dl.fbaipublicfiles.com/librilight/data"
TIMEOUT_SECONDS = 60
BLOCK_BYTES = 1 << 20
PROGRESS_SECONDS = 15.0


@dataclass(frozen=True)
class Archive:
    """A file on the mirror: its name, SHA-256 and published size, and the folder inside it."""

    name: str
    sha256: str
    gigabytes: float
    folder: str


def _subset(name: str, gigabytes: float, sha256: str) -> Archive:
    return Archive(f"{name}.tar.gz", sha256, gigabytes, f"LibriSpeech/{name}")


ARCHIVES = {
    "train-clean-100": _subset(
        "train-clean-100", 6.3, "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2"
    ),
    "train-clean-360": _subset(
        "train-clean-360", 23.0, "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf"
    ),
    "train-other-500": _subset(
        "train-other-500", 30.0, "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2"
    ),
    "dev-clean": _subset("dev-clean", 0.337, "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3"),
    "dev-other": _subset("dev-other", 0.314, "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365"),
    "test-clean": _subset("test-clean", 0.346, "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23"),
    "test-other": _subset("test-other", 0.328, "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29"),
    FINETUNING: Archive(
        f"{FINETUNING}.tgz", "5d1efdc777b548194d7e09ba89126e2188026df9fd57aa57eb14408d2b2342af", 0.6, FINETUNING
    ),
}


def download_parts(stated: Path, names: Sequence[str], mirror: str, librilight_mirror: str) -> None:
    """Bring parts of the corpus to where `prepare.py` looks for them; the archives stay beside the corpus.

    Args:
        stated: The folder LibriSpeech or the one above it; it may be missing.
        names: Keys of ``ARCHIVES``, or "all".
        mirror: The address before the names of LibriSpeech's archives.
        librilight_mirror: That before the name of Libri-light's.

    Raises:
        SpeechSSLError: a name is unknown, an archive cannot be had or is not what was published, or the folder is in
            use.
    """
    for name in names:
        if name not in ARCHIVES and name != "all":
            raise SpeechSSLError(f"DOWNLOAD={' '.join(names)}: expected all or some of {' '.join(ARCHIVES)}")
    corpus = corpus_folder(stated)
    folder = corpus.parent
    targets = {name: (folder if name == FINETUNING else corpus) / name for name in ARCHIVES}
    lacking = [name for name in ARCHIVES if (name in names or "all" in names) and not targets[name].is_dir()]
    if not lacking:
        print_status(f"{corpus}: nothing to download, all is here")
        return
    with _locked(folder):
        size = sum(ARCHIVES[name].gigabytes for name in lacking)
        print_status(
            f"{folder}: {size:.1f} GB to download ({', '.join(lacking)}), as much again once extracted; "
            f"{shutil.disk_usage(folder).free / 1e9:.1f} GB are free"
        )
        for name in lacking:
            archive = ARCHIVES[name]
            file = folder / archive.name
            if file.exists():
                verify(file, archive.sha256)
            else:
                partial = file.with_name(f"{file.name}.partial")
                download(f"{(librilight_mirror if name == FINETUNING else mirror).rstrip('/')}/{archive.name}", partial)
                verify(partial, archive.sha256)
                partial.rename(file)
            extract(file, archive.folder, targets[name])
    print_status(f"{folder}: complete; the archives can be removed")


def download(url: str, file: Path) -> None:
    """Fetch a file, going on behind what is there of it, as long as every attempt brings something.

    Raises:
        SpeechSSLError: it cannot be had, or the connection breaks off before anything new.
    """
    while True:
        before = _size(file)
        problem = "the connection was closed"
        try:
            if _receive(url, file, before):
                return
        except HTTPError as error:
            if error.code == 416 and before:  # there is no more than what is here: its checksum says the rest
                return
            raise SpeechSSLError(f"{url}: expected an archive, found HTTP {error.code} {error.reason}") from None
        except (OSError, HTTPException) as error:
            problem = str(error) or type(error).__name__
        now = _size(file)
        if now <= before:
            raise SpeechSSLError(f"{url}: broke off after {now} bytes: {problem}; run again to go on from there")
        print_status(f"{url}: broke off after {now} bytes: {problem}; going on")


def _receive(url: str, file: Path, before: int) -> bool:
    """Add to a file of so many bytes what comes behind them; whether it is complete now, as far as the server says."""
    request = Request(url, headers={"Range": f"bytes={before}-"} if before else {})
    with urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        goes_on = response.status == 206
        if before and not goes_on:
            print_status(f"{url}: the server cannot go on after {before} bytes, from the start again")
        start = before if goes_on else 0
        stated = response.headers["Content-Length"]
        total = None if stated is None else start + int(stated)
        with file.open("ab" if goes_on else "wb") as output:
            done, said = start, time.monotonic()
            for block in _blocks(response):
                output.write(block)
                done += len(block)
                if time.monotonic() - said > PROGRESS_SECONDS:
                    said = time.monotonic()
                    print_status(
                        f"{file.name}: {done / 1e9:.2f} of {'?' if total is None else f'{total / 1e9:.2f}'} GB"
                    )
    return total is None or done == total


def verify(file: Path, sha256: str) -> None:
    """Make sure that an archive is the published one.

    Raises:
        SpeechSSLError: it is another, or damaged; it stays as it is.
    """
    print_status(f"{file}: comparing its checksum")
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != sha256:
        raise SpeechSSLError(
            f"{file}: expected the SHA-256 {sha256}, found {found}; the file is kept: remove it to download it again"
        )


def extract(file: Path, inside: str, target: Path) -> None:
    """Extract an archive under another name, and rename when it is complete.

    Args:
        file: The archive.
        inside: The folder in it that is wanted.
        target: What the folder becomes.

    Raises:
        SpeechSSLError: the archive is unsafe, or has no such folder.
    """
    print_status(f"{target}: extracting")
    temporary = target.with_name(f".{target.name}.extracting")
    shutil.rmtree(temporary, ignore_errors=True)  # left by an extraction that was killed
    try:
        temporary.mkdir(parents=True)
        with tarfile.open(file) as archive:
            if hasattr(tarfile, "data_filter"):  # from Python 3.11.4 on
                archive.extraction_filter = tarfile.data_filter
            archive.extractall(temporary, _safe_members(archive, temporary, file))
        source = temporary / inside
        if not source.is_dir():
            raise SpeechSSLError(f"{file}: expected a folder {inside} in the archive, found none")
        if source.parent != temporary:  # what lies beside the target is the corpus' and not the user's
            for document in source.parent.glob("*.TXT"):  # the same in every archive: speakers, chapters, license
                document.replace(target.parent / document.name)
        source.rename(target)
    except (OSError, tarfile.TarError) as error:
        raise SpeechSSLError(f"{file}: cannot be extracted to {target}: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _safe_members(archive: tarfile.TarFile, folder: Path, file: Path) -> Iterator[tarfile.TarInfo]:
    """The members, as they are read: files and folders inside the folder, and nothing else."""
    for member in archive:
        if not (member.isfile() or member.isdir()):
            raise tarfile.TarError(f"expected files and folders inside it, found {member.name}")
        if member.name != ".":
            path_inside(folder, member.name, str(file))
        yield member


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second download out of the folder; it would write into the same files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".librispeech_download.lock").open("a")
    except OSError as error:
        raise SpeechSSLError(f"{folder}: cannot be downloaded to: {error.strerror or error}") from None
    with lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SpeechSSLError(f"{folder}: another process is downloading to this folder") from None
        yield


def _blocks(response: HTTPResponse) -> Iterator[bytes]:
    while block := response.read1(BLOCK_BYTES):  # what has arrived: nothing of it is lost if the connection breaks off
        yield block


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", help="the folder LibriSpeech, or the one above it")
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"all, or some of {' '.join(ARCHIVES)}")
    parser.add_argument("--mirror", default=MIRROR, metavar="URL", help=f"default: {MIRROR}")
    parser.add_argument(
        "--librilight-mirror", default=LIBRILIGHT_MIRROR, metavar="URL", help=f"default: {LIBRILIGHT_MIRROR}"
    )
    arguments = parser.parse_args()
    with exit_on_error():
        corpus = stated_folder("CORPUS", arguments.corpus, "a folder to download to")
        download_parts(corpus, arguments.names, arguments.mirror, arguments.librilight_mirror)


if __name__ == "__main__":
    main()
