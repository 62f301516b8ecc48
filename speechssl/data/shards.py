"""A manifest -> shards: tar files of clips, and a manifest that names each clip by its range of bytes.

A clip and its JSON have the same stem, as WebDataset reads them. Beside each shard is an index, ``NAME.json``, with the
range of each clip and a digest of what the shard was made of. The index is written before its shard: a shard that is
there and has the size that its index states is finished.
"""

import hashlib
import io
import json
import os
import tarfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from speechssl.data.clips import Clip, Encoding, make_clip
from speechssl.data.manifest import Manifest, Utterance
from speechssl.data.paths import split_range
from speechssl.data.stores import Folder
from speechssl.errors import AudioError, ManifestError, system_errors

_BLOCK = tarfile.BLOCKSIZE
_VERSION = 1  # of what a shard holds


@dataclass(frozen=True)
class ShardConfig:
    """What shards are to be like."""

    max_bytes: int  # of a shard, unless one clip is longer
    encoding: Encoding = "copy"


@dataclass(frozen=True)
class _Entry:
    """Where a clip is in its shard."""

    row: int  # counted from the shard's first
    offset: int
    num_bytes: int
    num_samples: int
    sample_rate: int


@dataclass(frozen=True)
class _Index:
    """What a shard holds, and of what it was made."""

    made_of: str  # a digest
    num_rows: int  # of the manifest, those included that could not be read
    num_bytes: int  # of the shard
    entries: tuple[_Entry, ...]

    @classmethod
    def parse(cls, content: bytes | None) -> "_Index | None":
        """Read what `text` wrote; None if it is something else."""
        with suppress(ValueError, KeyError, TypeError):
            fields = json.loads(content or b"")
            return cls(**{**fields, "entries": tuple(_Entry(*entry) for entry in fields["entries"])})
        return None

    def text(self) -> str:
        """Return it as JSON."""
        return json.dumps(self.__dict__ | {"entries": [[*asdict(entry).values()] for entry in self.entries]}) + "\n"


@dataclass
class Shards:
    """What was written, or kept of an earlier run."""

    utterances: list[Utterance]
    failures: list[AudioError]
    num_shards: int = 0
    num_kept: int = 0
    num_bytes: int = 0


def write_shards(
    manifest: Manifest, store: Folder, config: ShardConfig, advance: Callable[[], None] = lambda: None
) -> Shards:
    """Write the utterances of a manifest into shards, in its order; finished shards of the same are kept.

    The same utterances and settings give the same bytes. Memory holds a few clips at a time and the new utterances.

    Args:
        manifest: Its name without the suffix begins the names of the shards.
        store: Where they go.
        config: What they are to be like.
        advance: Called once an utterance.

    Raises:
        ManifestError: a file in the store cannot be read or written, or would be overwritten that is no shard.
    """
    shards = Shards([], [])
    with ThreadPoolExecutor() as executor:
        clips = _Clips(manifest, config.encoding, executor)
        try:
            row = 0
            while row < len(manifest):
                name = f"{manifest.path.stem}-{shards.num_shards:06d}"
                shard = _Shard(manifest, store, config, name, row, clips, advance)
                with system_errors(ManifestError, store.path(f"{name}.tar")):
                    index = shard.find_finished()
                    shards.num_kept += index is not None
                    index = index or shard.write()
                row += index.num_rows
                shards.num_shards += bool(index.entries)
                shards.num_bytes += index.num_bytes
                shards.failures += shard.failures
                shards.utterances += shard.utterances(index)
            _remove_rest(store, manifest.path.stem, shards.num_shards)
        finally:
            executor.shutdown(cancel_futures=True)  # an interrupt does not wait for the rest
    return shards


def _remove_rest(store: Folder, stem: str, number: int) -> None:
    """Remove the shards that an earlier run wrote behind the last one of this."""
    while _Index.parse(store.read(f"{stem}-{number:06d}.json")):
        for suffix in ("tar", "json"):
            store.remove(f"{stem}-{number:06d}.{suffix}")
        number += 1


class _Clips:
    """The clips of rows, made some rows ahead in threads: they are asked for in ascending order, nearly always."""

    def __init__(self, manifest: Manifest, encoding: Encoding, executor: ThreadPoolExecutor) -> None:
        self.manifest, self.encoding, self.executor = manifest, encoding, executor
        self.first = 0
        self.futures: deque[Future[Clip]] = deque()

    def __getitem__(self, row: int) -> Clip:
        """Return a clip; the `AudioError` of one that cannot be made is raised each time."""
        if row < self.first:
            self.futures.clear()
        while self.futures and self.first < row:
            self.futures.popleft()
            self.first += 1
        if not self.futures:
            self.first = row
        num_ahead = 2 * (os.cpu_count() or 1)
        for i in range(row + len(self.futures), min(row + 1 + num_ahead, len(self.manifest))):
            self.futures.append(self.executor.submit(make_clip, self.manifest[i], self.encoding))
        return self.futures[0].result()


@dataclass
class _Shard:
    """A shard that begins with a row of the manifest."""

    manifest: Manifest
    store: Folder
    config: ShardConfig
    name: str
    first_row: int
    clips: _Clips
    advance: Callable[[], None]

    def __post_init__(self) -> None:
        self.failures: list[AudioError] = []

    def find_finished(self) -> _Index | None:
        """Return the index of a shard that is there and was made of the same."""
        content, size = self.store.read(f"{self.name}.json"), self.store.size(f"{self.name}.tar")
        index = _Index.parse(content)
        if index is None and size is not None:
            raise ManifestError(f"{self.store.path(self.name)}.tar: expected a shard with its index, found no index")
        if index is None or size != index.num_bytes or index.num_rows > len(self.manifest) - self.first_row:
            return None
        if index.made_of != self._digest(index.num_rows):
            return None
        read = {entry.row for entry in index.entries}
        for row in range(index.num_rows):
            if row not in read:
                try:
                    self.clips[self.first_row + row]
                except AudioError as error:
                    self.failures.append(error)
                else:
                    self.failures.clear()
                    return None  # it can be read now
        for _ in range(index.num_rows):
            self.advance()
        return index

    def write(self) -> _Index:
        """Write the shard."""
        with self.store.scratch(f"{self.name}.tar") as temporary:
            num_rows, entries = self._fill(temporary)
            num_bytes = temporary.stat().st_size if entries else 0
            index = _Index(self._digest(num_rows), num_rows, num_bytes, tuple(entries))
            self.store.remove(f"{self.name}.tar")  # before an index that is not its own
            if entries:
                self.store.write(f"{self.name}.json", index.text())
                self.store.move_in(temporary, f"{self.name}.tar")
        return index

    def utterances(self, index: _Index) -> Iterator[Utterance]:
        """Yield what the shard holds, as the new manifest has it."""
        archive = self.store.path(f"{self.name}.tar")
        for entry in index.entries:
            yield replace(
                self.manifest[self.first_row + entry.row],
                path=f"{archive}:{entry.offset}:{entry.num_bytes}",
                start=0,
                num_samples=entry.num_samples,
                sample_rate=entry.sample_rate,
            )

    def _fill(self, path: Path) -> tuple[int, list[_Entry]]:
        """Write clips until the shard is full; return the number of rows they are from, and where they are."""
        entries: list[_Entry] = []
        with tarfile.open(path, "w") as tar:
            for row in range(len(self.manifest) - self.first_row):
                try:
                    clip = self.clips[self.first_row + row]
                except AudioError as error:
                    self.failures.append(error)
                else:
                    description = self._describe(self.first_row + row, clip)
                    added = 2 * _BLOCK + _whole_blocks(len(clip.content)) + _whole_blocks(len(description))
                    if entries and tar.offset + added + tarfile.RECORDSIZE > self.config.max_bytes:
                        return row, entries
                    stem = f"{self.first_row + row:09d}"
                    offset = _add(tar, f"{stem}.{clip.suffix}", clip.content)
                    _add(tar, f"{stem}.json", description)
                    entries.append(_Entry(row, offset, len(clip.content), clip.num_samples, clip.sample_rate))
                self.advance()
        return len(self.manifest) - self.first_row, entries

    def _describe(self, row: int, clip: Clip) -> bytes:
        """Return the JSON beside a clip."""
        utterance = self.manifest[row]
        texts = {name: getattr(utterance, name) for name in ("text", "speaker", "language")}
        fields: dict[str, Any] = {name: text for name, text in texts.items() if text is not None}
        fields |= {"sample_rate": clip.sample_rate, "num_samples": clip.num_samples}
        return json.dumps(fields, ensure_ascii=False).encode()

    def _digest(self, num_rows: int) -> str:
        """Return a digest of what the shard is made of: settings, rows, and sizes and times of change of files."""
        digest = hashlib.sha256(repr((_VERSION, self.config.max_bytes, self.config.encoding)).encode())
        rows = range(self.first_row, self.first_row + num_rows)
        names = self.manifest.columns.texts("path", rows.start, rows.stop)
        states: dict[str, tuple[int, int] | None] = {}
        for row, name in zip(rows, names, strict=True):
            utterance = self.manifest[row]
            if utterance.path not in states:
                states[utterance.path] = _state(utterance.path)
            row_of_it = (*asdict(replace(utterance, path=name or "")).values(), states[utterance.path])
            digest.update(repr(row_of_it).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def _state(path: str) -> tuple[int, int] | None:
    """Return the size and the time of change of a file or of the archive it is in; None of what is not local."""
    for place in (path, (split_range(path) or (path,))[0]):
        with suppress(OSError, ValueError):
            status = os.stat(place)  # noqa: PTH116, which makes an object
            return status.st_size, status.st_mtime_ns
    return None


def _whole_blocks(num_bytes: int) -> int:
    return -(-num_bytes // _BLOCK) * _BLOCK


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Append a file, of the time 0 and of nobody, and return where its content begins."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
    return int(tar.offset) - _whole_blocks(len(content))
