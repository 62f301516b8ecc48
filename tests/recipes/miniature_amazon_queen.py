"""A small queen.1c: the game's file with a few scenes, whose recordings are clips of the prompts.

What the prompts say stands where the game's lines would, so that labels are what is heard. Some lines and recordings
are as odd as those of the game, and some are worse.
"""

import io
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr
from miniature import Speech, speech

RATE = 11_025
HEADER = b"AmBk".ljust(20, b"\0")
PEOPLE = {  # the files of conversations, with the key that begins their recordings' names
    "BOB1": 6,
    "SPARKY1": 51,
    "KLUNK1": 28,
    "LOU1": 33,
    "NAOMI": 37,
    "FAYE2": 18,
    "ORACLE1": 39,
    "WITCH1": 59,
    "ZOMBIE1": 61,
}
TEST, DEV = {"FAYE", "ORACLE", "WITCH", "ZOMBIE"}, {"KLUNK", "LOU", "NAOMI"}
OBJECTS = (("Faye", -3), ("note", -4), ("plane", 5), ("Skip", -3))  # names and pictures: a person's are -3 and -4
FAYE, NOTE, PLANE, SKIP = range(1, 5)
JOE, NOBODY = 0, -2
NUM_DESCRIPTIONS, NUM_ROOMS = 3, 2


class Game:
    """Entries in the making.

    Attributes:
        entries: What is in the file, by name.
        said: The character and the prompt of each recording whose label is what is heard, by name.
    """

    def __init__(self) -> None:
        self.entries: dict[str, bytes] = {}
        self.said: dict[str, tuple[str, Speech]] = {}
        prompts = {prompt.text: prompt for prompt in speech(90, seconds=(1.0, 3.0))}
        # Those with rare letters, and with many, come first: train must have every letter of dev and test.
        self._prompts = iter(sorted(prompts.values(), key=lambda prompt: _num_letters(prompt.text), reverse=True))

    def say(self, clip: str, character: str | None = "JOE") -> str:
        """Record the next prompt under a name; the line to write for it. Nobody's lines get no label."""
        prompt = self.record(clip)
        if character:
            self.said[clip] = (character, prompt)
        return f"{prompt.text.capitalize()}!"

    def record(self, clip: str) -> Speech:
        """Record the next prompt under a name whose line says something else, or does not exist."""
        prompt = next(self._prompts)
        self.entries[f"{clip}.SB"] = mp3(prompt)
        return prompt

    def write(self, path: Path) -> None:
        """Write queen.1c."""
        offset = 15 + 21 * len(self.entries)
        table = b""
        for name, content in self.entries.items():
            table += name.encode("cp437").ljust(12, b"\0") + struct.pack(">BII", 1, offset, len(content))
            offset += len(content)
        head = b"QTBLCEM10".ljust(13, b"\0") + struct.pack(">H", len(self.entries))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(head + table + b"".join(self.entries.values()))


class Data:
    """The content of a file, in which texts end at a multiple of so many bytes from its start."""

    def __init__(self, num_bytes: int = 0) -> None:
        self.content = bytes(num_bytes)

    def numbers(self, *values: int) -> None:
        self.content += struct.pack(f">{len(values)}h", *values)

    def string(self, text: str, align: int) -> None:
        self.content += bytes([len(text)]) + text.encode("cp437")
        if text:
            self.content += bytes(-len(self.content) % align)


def _num_letters(text: str) -> tuple[int, int]:
    return len(set(text) & set("jkqvxz")), len(set(text))


def mp3(prompt: Speech) -> bytes:
    """A recording as the game's are: MPEG 2.5 layer 3 at 16 kbit/s, without the tag that states its length."""
    file = io.BytesIO()
    samples = np.clip(soxr.resample(prompt.samples, 16_000, RATE), -1, 1)
    soundfile.write(file, samples, RATE, format="MP3", bitrate_mode="CONSTANT", compression_level=0.9)
    return file.getvalue()


def conversation(
    key: int,
    joes: Sequence[tuple[int, str]],
    persons: Sequence[tuple[int, str]],
    begin: str = "0",
    again: tuple[str, str] = ("", "0"),
    num_levels: int = 1,
) -> bytes:
    """A `*.DOG`: lines after their ids, how Joe begins, and how the person and Joe do when they meet again."""
    data = Data(32 + 96 * abs(num_levels))
    all_joes = [(0, begin), *joes]
    offsets = []
    for lines in (all_joes, persons):
        for line_id, text in lines:
            data.numbers(0, line_id)
            data.string(text, 4)
        offsets.append(len(data.content))
    for text in again:
        data.string(text, 2)
    numbers = (num_levels, key, key, len(all_joes), len(persons), *[0] * 6)
    head = struct.pack(">11h3H", *numbers, offsets[0], 0, offsets[1])
    return HEADER + head + data.content[len(head) :]


def scene(steps: Sequence[tuple[int, str]], animated: Sequence[int] = ()) -> bytes:
    """A `*.CUT`: who speaks in each step and what; those that are animated have pictures instead of speech."""
    data = Data(12)
    for number, (who, _) in enumerate(steps, 1):
        is_animated = int(number in animated)
        data.numbers(who, 0, 0, 0, is_animated, is_animated, *[0] * 11)
        data.numbers(2, 5, 6)  # two people on the screen
        if is_animated:
            data.numbers(1, *[7] * 9, 2, *[8] * 9, -2)
    state_at = len(data.content)
    strings_at = state_at + 2
    data.numbers(-1)
    for text in ("*FL", *(text for _, text in steps)):
        data.string(text, 2)
    head = struct.pack(">3h3H", 0, -len(steps), 0, state_at, strings_at, len(data.content))
    return HEADER + head + data.content[len(head) :]


def tables(descriptions: Sequence[str], responses: Sequence[str]) -> dict[str, bytes]:
    """QUEEN.JAS with the objects, and QUEEN2.JAS with their names and what Joe says of things."""
    numbers = Data(20)
    numbers.numbers(NUM_ROOMS, len(OBJECTS), len(OBJECTS), NUM_DESCRIPTIONS)
    for number, (_, picture) in enumerate(OBJECTS, 1):
        numbers.numbers(number if number % 2 else -number, 0, 0, 0, 0, 1, 0, picture)  # every other one is hidden
    assert len(descriptions) == NUM_DESCRIPTIONS
    lines = [*descriptions, *(name for name, _ in OBJECTS), *["room"] * NUM_ROOMS, *["verb"] * 12, *responses]
    lines += [""] * (40 - len(responses)) + ["an actor's name"]
    return {"QUEEN.JAS": numbers.content, "QUEEN2.JAS": "\r\n".join(lines).encode("cp437")}


def make_game() -> Game:
    """All entries of the miniature."""
    game = Game()
    say, entries = game.say, game.entries
    game.record("570007P1")  # the first prompts are the longest: this one is too long for its line
    descriptions = [f"{say('JOE00411')}*15{say('JOE00412')}", "Nobody recorded this", say("JOE00431")]
    entries |= tables(descriptions, [say("JOE00011")])

    # Odd lines, all in one conversation.
    entries["BOB2.DOG"] = conversation(
        7,
        [
            (0x2A, f"{say('07002AJ1')}*00{say('07002AJ2')}*XY00(237,112){say('07002AJ3')}*FL"),
            (-2, f"*WT{say('07FFFEJ2')}"),  # the first segment is a pause
            (9, say("070009J1")),
            (9, "This id is there before, so nobody ever says this"),
        ],
        [(1, ""), (2, say("070002P1", "BOB")), (3, ""), (4, say("070004P1", "BOB"))],
        begin=say("07SSSSJ1"),
        again=(say("07XXXXP1", "BOB"), say("07XXXXJ1")),
        num_levels=-3,
    )
    for name, key in PEOPLE.items():
        person = name.rstrip("12")
        joes = [(1, say(f"{key:02d}0001J1"))]
        persons = [(number, say(f"{key:02d}{number:04X}P1", person)) for number in (1, 6)]
        entries[f"{name}.DOG"] = conversation(key, joes, persons)
    entries["CTEST.CUT"] = scene(
        [
            (JOE, say("CTEST011")),
            (PLANE, "*"),
            (FAYE, f"{say('CTEST031', 'FAYE')}*03{say('CTEST032', 'FAYE')}"),
            (JOE, "*"),
            (NOTE, say("CTEST051", None)),
            (NOBODY, say("CTEST061", None)),
            (SKIP, say("CTEST071", "LOU")),
        ],
        animated=(2, 4),
    )

    # Lines whose words are not what is written.
    lines = ["Caf\u00e9, Mr. Hmmmm!", "He has 24 hours", "(sigh)", "<koff>", "Frrblt!", "Aaaargh...", "Ok", "ID " * 40]
    entries["TAM1.DOG"] = conversation(57, [], list(enumerate(lines, 1)))
    for number in {*range(1, len(lines) + 1)} - {7}:
        game.record(f"57{number:04X}P1")

    # What is no speech, what is there twice, and what is damaged.
    entries["DOG.DOG"] = conversation(14, [], [(1, "Woof woof!")])
    for clip in ("140001P1", "101SSSSS", "MIK_0019"):
        game.record(clip)
    entries["CAGAI.CUT"] = scene([(JOE, "It is the same recording")])
    entries["CAGAI011.SB"] = entries["07002AJ1.SB"]
    entries["MAN1.DOG"] = conversation(35, [], [(1, "This recording is damaged"), (2, "This one is empty")])
    entries["350001P1.SB"], entries["350002P1.SB"] = b"\0" * 900, b""
    whole = conversation(36, [(1, "A line of a file that is cut off")], [(1, "Another one")])
    entries["MAN2.DOG"] = whole[:-30]
    entries["CBAD.CUT"] = scene([(PLANE, "*")], animated=(1,))[:60]
    return game


def make_tree(folder: Path) -> dict[str, str]:
    """Write queen.1c where the Debian package has it; the settings for run.sh."""
    make_game().write(folder / "usr" / "share" / "scummvm" / "flight-of-the-amazon-queen" / "queen.1c")
    return {"CORPUS": str(folder)}
