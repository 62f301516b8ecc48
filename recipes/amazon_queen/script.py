"""Find what is said in which recording, and by whom, as the game does.

The lines are in three places: `*.DOG` holds conversations between Joe and one other person, `QUEEN2.JAS` what Joe says
about things, `*.CUT` scenes that play by themselves. A line is spoken in segments. Each segment is a recording, named
after the place of its line and the number of the segment. Texts are in code page 437.
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from archive import Archive

from speechssl.errors import ManifestError

JOE = "JOE"

CUT_CHARACTERS = {
    # As the scenes' objects are named -> as the conversations are, or themselves where there is no conversation.
    "Anderson": "AND",
    "Bud": "BUD",
    "Eddy": "EDDY",
    "Faye": "FAYE",
    "Frank": "FRANK",
    "Henry": "HENRY",
    "Hugh": "HUGH",
    "Ian": "IAN",
    "Jimmy": "JIM",
    "Joe King": JOE,
    "John": "JOHN",
    "Klunk": "KLUNK",
    "Lola": "LOLA",
    "Mary-Lou": "TAM",
    "Naomi": "NAOMI",
    "Princess Azura": "PRIN",
    "Rico": "RICO",
    "Rita": "RITA",
    "Skip": "LOU",
    "Sparky": "SPARKY",
    "Trader Bob": "BOB",
    "Wedgewood": "WEDGE",
    "azura obj": "PRIN",
    "bedraggled prisoner": "PRISONER1",
    "bellboy": "LARIS",
    "chef": "CHEF",
    "chief": "CHIEF",
    "ferryman": "DEATH",
    "gorilla": "APE",
    "guard": "GUARD",
    "guard dog": "DOG",
    "guardian": "ORACLE",
    "secretary": "SEC",
    "showering Amazon": "SHOWERAM",
    "tired prisoner": "PRISONER2",
    "vicious dinosaur": "APE",  # it is the gorilla in a costume
    "witch doctor": "WITCH",
    "zombie woman": "ZOMBIE",
}

_HEADER_BYTES = 20  # of every file inside the archive; the offsets in it count from behind
_NO_STRING = "0"
_DIRECTION = "*"
_POSITION = "XY"  # a direction that goes on with 11 characters
_POSITION_CHARACTERS = 11
_LEVEL_BYTES = 96  # of the tree that says which answer leads where
_NUM_RESPONSES = 40  # of Joe's, which follow the descriptions, names, rooms and verbs in QUEEN2.JAS
_NUM_VERBS = 12
_PERSON_IMAGES = (-3, -4)
_NUM_OBJECT_FIELDS, _NUM_ANIMATION_FIELDS = 17, 9
_END_OF_ANIMATION = -2
_SPOKEN_BY_NOBODY = (-2, -3, -4)  # texts that stand on the screen
_DAMAGE = (ValueError, IndexError, struct.error)


@dataclass(frozen=True)
class Line:
    """Describe a recorded segment.

    Attributes:
        text: As written.
        character: Who says it; None if that is unknown.
    """

    text: str
    character: str | None


def read_script(archive: Archive, drop: Callable[[str, str], None]) -> dict[str, Line]:
    """Return what is said in each recording, by its name, except recordings without a line.

    Args:
        archive: The game's file.
        drop: Called with what cannot be read.
    """
    script: dict[str, Line] = {}
    world = _read_world(archive)
    for name in ["QUEEN2.JAS", *archive.names(".DOG"), *archive.names(".CUT")]:
        try:
            lines = list(_lines(archive, name, world))
        except _DAMAGE as error:
            drop("dialogue that cannot be read", f"{archive.path}: {name}: {error}")
            continue
        for clip, line in lines:
            script.setdefault(clip, line)  # the game takes the first line of an id too
    return script


def _lines(archive: Archive, name: str, world: "_World") -> Iterator[tuple[str, Line]]:
    if name.endswith(".DOG"):
        return _conversation(name, archive.read(name))
    if name.endswith(".CUT"):
        return _scene(name, archive.read(name), world)
    return _descriptions(world)


class _Reader:
    """Read a file's data from a position, which advances."""

    def __init__(self, data: bytes, position: int = 0) -> None:
        self.data = data
        self.position = position

    def numbers(self, count: int) -> tuple[int, ...]:
        """Read some signed numbers of two bytes."""
        values = struct.unpack_from(f">{count}h", self.data, self.position)
        self.position += 2 * count
        return values

    def number(self) -> int:
        return self.numbers(1)[0]

    def offset(self) -> int:
        return self.number() & 0xFFFF

    def string(self, align: int) -> str:
        """Read a byte with the length, the text, and, unless it is empty, zeros up to a multiple of `align` bytes."""
        start = self.position + 1
        end = start + self.data[self.position]
        if end > len(self.data):
            raise ValueError(f"expected {end - start} bytes of text at byte {start}, found {len(self.data) - start}")
        self.position = start if end == start else -(-end // align) * align
        return self.data[start:end].decode("cp437")


@dataclass(frozen=True)
class _World:
    """Hold the tables that scenes refer to: names and images of objects (from 1 on), and all of Joe's descriptions."""

    object_names: list[str]
    object_images: list[int]
    descriptions: list[str]
    responses: list[str]


def _read_world(archive: Archive) -> _World:
    reader = _Reader(archive.read("QUEEN.JAS"), _HEADER_BYTES)
    texts = archive.read("QUEEN2.JAS").decode("cp437").split("\r\n")
    try:
        num_rooms, num_names, num_objects, num_descriptions = reader.numbers(4)
        objects = [reader.numbers(8) for _ in range(num_objects)]
        names = texts[num_descriptions : num_descriptions + num_names]
        # A name is negative while its object is hidden, and 0 if there is none.
        object_names = ["", *(names[abs(values[0]) - 1] if values[0] else "" for values in objects)]
    except _DAMAGE as error:
        raise ManifestError(f"{archive.path}: expected tables in QUEEN.JAS and QUEEN2.JAS: {error}") from None
    first_response = num_descriptions + num_names + num_rooms + _NUM_VERBS
    return _World(
        object_names,
        [0, *(values[7] for values in objects)],
        texts[:num_descriptions],
        texts[first_response : first_response + _NUM_RESPONSES],
    )


def _segments(prefix: str, line: str, character: str | None) -> Iterator[tuple[str, Line]]:
    """Yield a line's recordings: a direction ends a segment, and the segment's number ends the recording's name."""
    pattern = rf"\*(?:{_POSITION}.{{{_POSITION_CHARACTERS}}}|..)"
    parts = re.split(pattern, line)
    for number, text in enumerate(parts, 1):
        if text.strip():
            yield f"{prefix}{number:X}", Line(text, character)


def _descriptions(world: _World) -> Iterator[tuple[str, Line]]:
    for number, text in enumerate(world.responses + world.descriptions, 1):
        yield from _segments(f"JOE{number:04d}", text, JOE)


def _conversation(name: str, content: bytes) -> Iterator[tuple[str, Line]]:
    data = content[_HEADER_BYTES:]
    character = re.sub(r"\d*\.DOG$", "", name)
    reader = _Reader(data)
    num_levels, _, key, num_joes, num_persons = reader.numbers(5)
    reader.numbers(6)
    person_at, _, again_at = reader.offset(), reader.offset(), reader.offset()
    joe_at = 32 + _LEVEL_BYTES * abs(num_levels)

    reader.position = joe_at
    for letter, speaker, number in (("J", JOE, num_joes), ("P", character, num_persons)):
        if letter == "P" and reader.position != person_at:
            raise ValueError(f"expected the lines of {character} at byte {person_at}, found them at {reader.position}")
        for _ in range(number):
            _, line_id = reader.numbers(2)
            yield from _segments(f"{key:02d}{line_id & 0xFFFF:04X}{letter}", reader.string(4), speaker)

    reader.position = joe_at + 2  # how Joe begins
    if reader.number() == 0 and not (text := reader.string(2)).startswith(_NO_STRING):
        yield from _segments(f"{key:02d}SSSSJ", text, JOE)
    reader.position = again_at  # how both begin when they have talked before
    yield from _segments(f"{key:02d}XXXXP", reader.string(2), character)
    if not (text := reader.string(2)).startswith(_NO_STRING):
        yield from _segments(f"{key:02d}XXXXJ", text, JOE)


def _scene(name: str, content: bytes, world: _World) -> Iterator[tuple[str, Line]]:
    reader = _Reader(content[_HEADER_BYTES:])
    _, num_steps, _ = reader.numbers(3)
    state_at, strings_at, _ = reader.offset(), reader.offset(), reader.offset()
    characters = [_step(reader, world) for _ in range(abs(num_steps))]
    if not 0 <= state_at - reader.position <= 4:
        raise ValueError(f"expected {abs(num_steps)} steps until about byte {state_at}, found {reader.position}")
    reader.position = strings_at
    reader.string(2)  # where Joe looks
    for number, character in enumerate(characters, 1):
        prefix = f"{name.removesuffix('.CUT'):_<5}{number:02d}"
        yield from _segments(prefix, reader.string(2), character)


def _step(reader: _Reader, world: _World) -> str | None:
    """Read a step of a scene, with its animation if it has one, and return who speaks in it."""
    values = reader.numbers(_NUM_OBJECT_FIELDS)
    reader.numbers(reader.number())  # who is on the screen
    number, is_animated, is_executed, copied_from = values[0], bool(values[4]), bool(values[5]), values[12]
    if number in _SPOKEN_BY_NOBODY:
        return None
    is_joe = number <= 0  # a negative number is Joe too, with a fade
    speaks = not is_animated and (is_joe or world.object_images[number] in _PERSON_IMAGES)
    if is_executed and not speaks and copied_from <= 0:
        while reader.number() != _END_OF_ANIMATION:
            reader.numbers(_NUM_ANIMATION_FIELDS)
    return JOE if is_joe else CUT_CHARACTERS.get(world.object_names[number])
