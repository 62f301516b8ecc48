"""What is written is read back by parsers that follow the formats' descriptions and know nothing of the writer."""

import html
import io
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wcwidth import iter_graphemes, width

from speechssl.decode.words import Word
from speechssl.transcribe.subtitles import shape_cues
from speechssl.transcribe.transcript import Transcript

Cues = list[tuple[int, int, list[str]]]

HOUR, MINUTE, SECOND = 3_600_000, 60_000, 1000
# Any character that a vocabulary may hold: no white space, no control characters.
LETTERS = st.characters(exclude_categories=["C", "Z"], exclude_characters="￾￿")
WORDS = st.text(st.one_of(st.sampled_from("ab&<>-"), LETTERS), min_size=1, max_size=100)


@st.composite
def transcripts(draw: st.DrawFn) -> Transcript:
    """Words that rise, some of no length or touching, some long, some after long pauses."""
    words, time = [], draw(st.sampled_from([0.0, 1e-4, 3599.9]))
    gaps = st.one_of(st.just(0.0), st.floats(0, 0.5), st.floats(0, 9))
    for text in draw(st.lists(WORDS, max_size=30)):
        start = time + draw(gaps)
        time = start + draw(gaps)
        words.append(Word(text, start, time, 1.0))
    return Transcript(" ".join(word.text for word in words), time + draw(gaps), tuple(words))


def parse_srt(content: str) -> Cues:
    """Blocks between empty lines: a number from 1, two times, lines of text."""
    cues: Cues = []
    for number, block in enumerate(content.split("\n\n") if content else [], start=1):
        first, times, *lines = block.removesuffix("\n").split("\n")
        assert first == str(number)
        match = re.fullmatch(r"(\d\d+):(\d\d):(\d\d),(\d{3}) --> (\d\d+):(\d\d):(\d\d),(\d{3})", times)
        assert match, times
        assert all("-->" not in line for line in lines)
        numbers = [int(part) for part in match.groups()]
        start, end = (h * HOUR + m * MINUTE + s * SECOND + ms for h, m, s, ms in (numbers[:4], numbers[4:]))
        cues.append((start, end, lines))
    return cues


def parse_vtt(content: str) -> Cues:
    """WebVTT's parser (section 6.1) for files without settings, styles, notes and identifiers, and its cue text."""
    lines = content.split("\n")
    assert lines[0] == "WEBVTT"
    assert lines[1] == ""
    assert content.endswith("\n")
    cues: Cues = []
    position = 2
    while position < len(lines):
        if not lines[position]:
            position += 1
            continue
        match = re.fullmatch(
            r"(\d\d+):([0-5]\d):([0-5]\d)\.(\d{3}) --> (\d\d+):([0-5]\d):([0-5]\d)\.(\d{3})", lines[position]
        )
        assert match, lines[position]
        numbers = [int(part) for part in match.groups()]
        start, end = (h * HOUR + m * MINUTE + s * SECOND + ms for h, m, s, ms in (numbers[:4], numbers[4:]))
        position += 1
        text = []
        while position < len(lines) and lines[position]:
            assert "-->" not in lines[position]
            assert "<" not in lines[position]
            assert not re.search(r"&(?!(amp|lt|gt);)", lines[position])
            text.append(html.unescape(lines[position]))
            position += 1
        cues.append((start, end, text))
    return cues


def check_cues(cues: Cues, seconds: float) -> None:
    for start, end, lines in cues:
        assert 0 < end - start <= 7000
        assert 1 <= len(lines) <= 2
        assert all(line and width(line) <= 42 and line == line.strip() for line in lines)
    for (_, end, _), (start, _, _) in pairwise(cues):
        assert end <= start
    for (start, end, _), (following, _, _) in pairwise(cues):
        assert end - start >= 1000 or following <= start + 1000


def without_spaces(text: str) -> str:
    return "".join(text.split())


@given(transcripts(), st.booleans())
def test_srt_is_read_back(transcript: Transcript, words: bool) -> None:
    cues = parse_srt(transcript.to_srt(words))
    check_cues(cues, transcript.seconds)
    said = "".join(without_spaces("".join(lines)) for _, _, lines in cues)
    assert said.replace("→", "-->") == without_spaces(transcript.text).replace("→", "-->")


@given(transcripts(), st.booleans())
def test_vtt_is_read_back(transcript: Transcript, words: bool) -> None:
    cues = parse_vtt(transcript.to_vtt(words))
    check_cues(cues, transcript.seconds)
    assert "".join(without_spaces("".join(lines)) for _, _, lines in cues) == without_spaces(transcript.text)


@pytest.mark.parametrize("output_format", ["srt", "webvtt"])
@given(transcript=transcripts(), words=st.booleans())
def test_ffmpeg_reads_the_same_cues(transcript: Transcript, words: bool, output_format: str) -> None:
    """An independent parser."""
    av = pytest.importorskip("av")
    content = transcript.to_srt(words) if output_format == "srt" else transcript.to_vtt(words)
    expected = (parse_srt if output_format == "srt" else parse_vtt)(content)
    if not expected:
        return
    with av.open(io.BytesIO(content.encode("utf-8")), format=output_format) as container:
        packets = [packet for packet in container.demux() if packet.size]
        found = [(int(1000 * p.pts * p.time_base), int(1000 * (p.pts + p.duration) * p.time_base)) for p in packets]
    assert found == [(start, end) for start, end, _ in expected]
    for packet, (_, _, lines) in zip(packets, expected, strict=True):
        said = html.unescape(bytes(packet).decode("utf-8"))
        assert without_spaces(said) == without_spaces("".join(lines))


@given(transcripts(), st.booleans())
def test_tsv_is_read_back(transcript: Transcript, words: bool) -> None:
    head, *rows = transcript.to_tsv(words).removesuffix("\n").split("\n")
    assert head == "start\tend\ttext"
    times, texts = [], []
    for row in rows:
        start, end, text = row.split("\t")
        times += [int(start), int(end)]
        texts.append(text)
    assert times == sorted(times)
    assert " ".join(texts) == transcript.text
    if words:
        assert texts == transcript.text.split()


@given(
    st.lists(st.sampled_from(["e\u0301", "你", "กำ", "क्षि", "👨‍👩‍👧‍👦", "🇩🇪", "a", "한"]), min_size=1, max_size=150),
    st.booleans(),
)
def test_lines_are_cut_between_what_is_read_as_a_letter(letters: list[str], are_words: bool) -> None:
    """By their width on a screen."""
    text = "".join(letters)
    times = [0.1 * number for number in range(len(letters) + 1)]
    words = [Word(text, 0.0, times[-1], 1.0)]
    if are_words:
        words = [
            Word(letter, *pair, 1.0, number > 0)
            for number, (letter, pair) in enumerate(zip(letters, pairwise(times), strict=True))
        ]
    cues = shape_cues([words], times[-1])
    lines = [line for cue in cues for line in cue.lines]
    assert "".join(lines) == text
    clusters = list(iter_graphemes(text))
    assert [cluster for line in lines for cluster in iter_graphemes(line)] == clusters
    assert all(width(line) <= 42 for line in lines)
    assert all(len(cue.lines) <= 2 for cue in cues)
    assert sum(width(line) for line in lines) >= 10 * len(lines) or len(lines) <= 2


@pytest.mark.parametrize("cluster", ["กำ", "🇩🇪", "e\u0301", "👨‍👩‍👧‍👦"])
def test_a_cluster_that_does_not_fit_is_not_cut(cluster: str) -> None:
    for length in (40, 41, 42):
        cues = shape_cues([[Word("x" * length + cluster, 0.0, 5.0, 1.0)]], 9.0)
        lines = [line for cue in cues for line in cue.lines]
        assert "".join(lines) == "x" * length + cluster
        assert lines[-1].endswith(cluster)
        assert len(lines) == (1 if length + width(cluster) <= 42 else 2)


def test_a_line_of_han_is_half_as_long() -> None:
    cues = shape_cues([[Word("汉" * 50, 0.0, 5.0, 1.0)]], 9.0)
    assert [cue.lines for cue in cues] == [("汉" * 21, "汉" * 21), ("汉" * 8,)]


def say(text: str, seconds_a_word: float = 0.3, pauses: dict[str, float] | None = None) -> list[Word]:
    words, time = [], 0.0
    for word in text.split():
        words.append(Word(word, time, time + seconds_a_word, 1.0))
        time += seconds_a_word + (pauses or {}).get(word, 0.0)
    return words


def test_lines_are_of_equal_length_if_they_can_be() -> None:
    (cue,) = shape_cues([say("the quick brown fox jumps over the lazy dog", 0.2)], 100.0)
    assert cue.lines == ("the quick brown fox", "jumps over the lazy dog")
    (cue,) = shape_cues([say("the quick brown fox jumps over the lazy", 0.2)], 100.0)
    assert cue.lines == ("the quick brown fox jumps over the lazy",)


def test_a_cue_ends_at_a_pause_rather_than_where_it_is_full() -> None:
    text = "the quick brown fox jumps over the lazy dog while the cat sleeps by the fire all day long again"
    (_, last) = shape_cues([say(text, 0.1)], 100.0)
    assert last.lines == ("day long again",)
    (first, _) = shape_cues([say(text, 0.1, {"sleeps": 0.3})], 100.0)
    assert " ".join(first.lines).endswith("the cat sleeps")


def test_cues_last_a_second_where_there_is_room() -> None:
    words = [Word("a", 0.0, 0.2, 1.0), Word("b", 0.5, 0.6, 1.0), Word("c", 9.0, 9.1, 1.0)]
    cues = shape_cues([[word] for word in words], 9.5)
    assert [(cue.start, cue.end) for cue in cues] == [(0, 500), (500, 1500), (9000, 9500)]


def test_no_cue_lasts_over_seven_seconds() -> None:
    cues = shape_cues([[Word("a", 0.0, 5.0, 1.0), Word("b", 5.0, 7.5, 1.0), Word("c", 8.0, 20.0, 1.0)]], 20.0)
    assert [(cue.start, cue.end) for cue in cues] == [(0, 5000), (5000, 7500), (8000, 15_000)]


def test_scripts_without_spaces_are_cut_into_lines_that_share_the_time() -> None:
    cues = shape_cues([[Word("字" * 100, 0.0, 10.0, 1.0)]], 10.0)
    assert [tuple(map(len, cue.lines)) for cue in cues] == [(21, 21), (21, 21), (16,)]
    assert [(cue.start, cue.end) for cue in cues] == [(0, 4200), (4200, 8400), (8400, 10_000)]


@pytest.mark.parametrize(
    ("seconds", "clock"), [(0.0004, "00:00:00,000"), (3661.0015, "01:01:01,002"), (360_000.5, "100:00:00,500")]
)
def test_clocks(seconds: float, clock: str) -> None:
    transcript = Transcript("a", seconds + 2, (Word("a", seconds, seconds + 1, 1.0),))
    assert transcript.to_srt().split("\n")[1].startswith(clock)


def test_what_the_formats_reserve_is_escaped() -> None:
    transcript = Transcript("a<b>&amp; --->", 2.0, (Word("a<b>&amp;", 0.0, 1.0, 1.0), Word("--->", 1.0, 2.0, 1.0)))
    assert transcript.to_vtt().endswith("\na&lt;b&gt;&amp;amp; ---&gt;\n")
    assert transcript.to_srt().endswith("\na<b>&amp; -→\n")
