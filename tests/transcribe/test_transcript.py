import json

from speechssl.decode.words import Word
from speechssl.transcribe.transcript import Transcript


def spoken(*words: tuple[str, float, float]) -> Transcript:
    text = " ".join(word for word, _, _ in words)
    return Transcript(text, 100.0, tuple(Word(*word, confidence=0.5) for word in words))


def test_a_transcript_is_its_text() -> None:
    assert str(Transcript("one two", 3.0)) == "one two"
    assert Transcript("one two", 3.0).segments == ()


def test_segments_end_at_pauses() -> None:
    transcript = spoken(("one", 0.0, 0.3), ("two", 0.89, 1.0), ("three", 1.6, 2.0))
    assert [segment.text for segment in transcript.segments] == ["one two", "three"]
    assert [(segment.start, segment.end) for segment in transcript.segments] == [(0.0, 1.0), (1.6, 2.0)]
    assert transcript.segments[0].words == transcript.words[:2]


def test_long_segments_are_parted_at_their_longest_pauses() -> None:
    # 90 words in 45 s with a longer pause after every 13th.
    words = [(str(n), 0.5 * n, 0.5 * n + (0.1 if n % 13 == 12 else 0.4)) for n in range(90)]
    segments = spoken(*words).segments
    assert [len(segment.words) for segment in segments] == [39, 39, 12]
    assert all(segment.end - segment.start <= 20 for segment in segments)


def test_a_word_that_outlasts_a_segment_stands_alone() -> None:
    segments = spoken(("a", 0.0, 0.1), ("oooo", 0.2, 30.0), ("b", 30.1, 30.2)).segments
    assert [segment.text for segment in segments] == ["a", "oooo", "b"]


def test_json_follows_its_schema() -> None:
    transcript = Transcript("где он", 1.23456, (Word("где", 0.1, 0.21239, 0.98765), Word("он", 1.0, 1.23456, 1.0)))
    assert json.loads(transcript.to_json("a.wav")) == {
        "format": "speechssl-transcript",
        "version": 1,
        "path": "a.wav",
        "seconds": 1.235,
        "text": "где он",
        "confidence": 0.9938,
        "confidences": "uncalibrated",
        "segments": [
            {
                "start": 0.1,
                "end": 0.212,
                "text": "где",
                "words": [{"start": 0.1, "end": 0.212, "text": "где", "confidence": 0.9877}],
            },
            {
                "start": 1.0,
                "end": 1.235,
                "text": "он",
                "words": [{"start": 1.0, "end": 1.235, "text": "он", "confidence": 1.0}],
            },
        ],
    }
    assert "где" in transcript.to_json()
    assert "\n" not in transcript.to_json()
    assert json.loads(transcript.to_json())["path"] is None
    assert json.loads(Transcript("", 1.0, is_calibrated=True).to_json()) == {
        **json.loads(Transcript("", 1.0).to_json()),
        "confidence": None,
        "confidences": "calibrated",
    }


def test_a_part_of_a_recording_keeps_the_times_of_the_whole() -> None:
    shifted = spoken(("one", 0.0, 0.5)).shifted(60.0)
    assert shifted.words == (Word("one", 60.0, 60.5, 0.5),)
    assert (shifted.text, shifted.seconds) == ("one", 160.0)


def test_the_formats_of_a_transcript() -> None:
    transcript = spoken(("one", 0.0, 0.5), ("two", 0.6, 3.0), ("three", 4.0, 4.1))
    assert transcript.to_srt() == (
        "1\n00:00:00,000 --> 00:00:03,000\none two\n\n2\n00:00:04,000 --> 00:00:05,000\nthree\n"
    )
    assert transcript.to_vtt() == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:03.000\none two\n\n00:00:04.000 --> 00:00:05.000\nthree\n"
    )
    assert transcript.to_tsv() == "start\tend\ttext\n0\t3000\tone two\n4000\t4100\tthree\n"
    assert transcript.to_tsv(words=True) == "start\tend\ttext\n0\t500\tone\n600\t3000\ttwo\n4000\t4100\tthree\n"
    assert transcript.to_srt(words=True).count("-->") == transcript.to_vtt(words=True).count("-->") == 3


def test_nothing_said_is_an_empty_file_of_each_format() -> None:
    silent = Transcript("", 5.0)
    assert (silent.to_srt(), silent.to_vtt(), silent.to_tsv()) == ("", "WEBVTT\n", "start\tend\ttext\n")
