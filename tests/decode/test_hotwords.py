import math
import re
from itertools import groupby, product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from speechssl.data.units import Letters
from speechssl.decode.arpa import write_arpa
from speechssl.decode.beam_search import BeamSearch
from speechssl.decode.greedy import PathToken, greedy_path
from speechssl.decode.hotwords import BOOST, Hotwords
from speechssl.decode.kneser_ney import estimate_ngrams
from speechssl.decode.settings import BeamSearchConfig
from speechssl.decode.spotting import Phrase, Spotter
from speechssl.decode.words import words_of_path
from speechssl.errors import ConfigError
from speechssl.frames import FrameGeometry

UNITS = Letters.from_texts(["abcdefghijklmnopqrstuvwxyz'é"])
FLOOR = 1e-6


def said(text: str, **instead: str) -> Tensor:
    """Log probabilities: two frames of each letter, ``|`` between words, and a blank after each symbol.

    A capital is heard as its small letter with 0.6, and as the letter that ``instead`` has for it with 0.3.
    """
    rows = []
    for symbol in text.replace(" ", "|"):
        row = torch.full((len(UNITS),), FLOOR)
        row[UNITS.symbols.index(symbol.lower())] = 0.6 if symbol.isupper() else 0.9
        if symbol.isupper():
            row[UNITS.symbols.index(instead[symbol])] = 0.3
        blank = torch.full((len(UNITS),), FLOOR)
        blank[UNITS.blank_id] = 0.9
        rows += [row, row, blank]
    return torch.stack(rows).log()


def listen(tmp_path: Path, table: str, units: Letters = UNITS, frames: int | None = None) -> Hotwords:
    (tmp_path / "hot.tsv").write_text(table, "utf-8")
    return Hotwords.read(tmp_path / "hot.tsv", units, frames)


def text_of(path: list[PathToken], units: Letters = UNITS) -> str:
    return units.decode(token.symbol_id for token in path)


def phrases_of(path: list[PathToken]) -> list[str]:
    """The letters of each phrase that was heard."""
    runs = groupby((token for token in path if token.spot), key=lambda token: id(token.spot))
    return ["".join(UNITS.symbols[token.symbol_id] for token in run) for _, run in runs]


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("is_border", [True, False])
@pytest.mark.parametrize("is_end", [True, False])
def test_no_other_way_to_leave_the_greedy_path_scores_higher(seed: int, is_border: bool, is_end: bool) -> None:
    phrases = [Phrase((2,), 1.0), Phrase((2, 2), 3.0), Phrase((3, 1, 2), 6.0)]  # of blank, delimiter, a, b
    log_probs = (2 * torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))).double().log_softmax(dim=1)
    rows = log_probs.tolist()
    greedy = log_probs.argmax(dim=1).tolist()
    marks = "".join("-|ab"[symbol] for symbol in greedy)
    gaps = [match.span() for match in re.finditer("[-|]+", marks)]
    between = {
        frame
        for first, stop in gaps
        if "|" in marks[first:stop] or (is_border and first == 0) or (is_end and stop == 6)
        for frame in range(first, stop)
    }

    def best(path: tuple[int, ...], frame: int, in_border: bool) -> float:
        """The highest boost with which the rest of a path can be read."""
        if frame == len(path):
            return 0.0
        ways = [best(path, frame + 1, False)] if path[frame] == greedy[frame] else []
        if path[frame] == 1 and (in_border or frame in between):
            ways.append(best(path, frame + 1, True))
        if in_border and path[frame] == 0:
            ways.append(best(path, frame + 1, True))
        for phrase in phrases if in_border and path[frame] != 0 else ():
            for stop in range(frame + 1, len(path) + 1):
                if tuple(symbol for symbol, _ in groupby(path[frame:stop]) if symbol) == phrase.labels:
                    if stop == len(path):
                        ways += [phrase.boost] if is_end else []
                    elif path[stop] == 1 and stop in between:
                        ways.append(phrase.boost + best(path, stop + 1, True))
        return max(ways, default=-math.inf)

    highest = max(
        sum(row[symbol] for row, symbol in zip(rows, path, strict=True)) + best(path, 0, is_border)
        for path in product(range(4), repeat=6)
    )
    found = Spotter(phrases, 0, 1, frozenset({0, 1})).find(log_probs.numpy(), is_border=is_border, is_end=is_end)
    path = list(greedy)
    for spot in found:
        path[spot.first_frame : spot.stop_frame] = spot.symbols
    score = sum(row[symbol] for row, symbol in zip(rows, path, strict=True)) + sum(spot.phrase.boost for spot in found)
    assert score == pytest.approx(highest)
    assert len(path) == 6


@pytest.mark.parametrize("frames", [None, 7])
@pytest.mark.parametrize("seed", range(5))
def test_the_path_is_the_greedy_one_where_no_phrase_is_near(tmp_path: Path, seed: int, frames: int | None) -> None:
    randomness = torch.Generator().manual_seed(seed)
    log_probs = (3 * torch.randn(60, len(UNITS), generator=randomness)).log_softmax(dim=1)
    hotwords = listen(tmp_path, "quetzalcoatl\nxylophone jazz\t1.5\tX\n", frames=frames)
    for parts in [log_probs], log_probs.split(13):
        assert hotwords.find_path(parts) == greedy_path(parts, UNITS.blank_id)
    assert hotwords.find_path([]) == []


def test_a_phrase_is_found_where_it_is_nearly_heard(tmp_path: Path) -> None:
    heard = said("the cVt is", V="a")
    assert text_of(listen(tmp_path, "dog").find_path([heard])) == "the cvt is"
    assert text_of(listen(tmp_path, "cat").find_path([heard])) == "the cat is"
    assert text_of(listen(tmp_path, "cat\t0").find_path([heard])) == "the cvt is"
    assert text_of(listen(tmp_path, "cat\t0.4").find_path([heard])) == "the cvt is"  # two frames of ln 2 are 1.39
    assert text_of(listen(tmp_path, "cat\t0.5").find_path([heard])) == "the cat is"


def test_a_phrase_that_is_begun_and_not_finished_gets_nothing(tmp_path: Path) -> None:
    heard = said("the qUe is", U="i")
    for phrase in "qie here", "qiexxxxx", "the qie was":
        hotwords = listen(tmp_path, f"{phrase}\t3\n")
        assert hotwords.find_path([heard]) == greedy_path([heard], UNITS.blank_id)
    assert text_of(listen(tmp_path, "qie\t3\n").find_path([heard])) == "the qie is"


def test_an_occurrence_is_boosted_once(tmp_path: Path) -> None:
    heard = said("new york new Xork york", X="y")
    hotwords = listen(tmp_path, "new york\t1\nyork\t1\n")
    assert phrases_of(hotwords.find_path([heard])) == ["newyork", "newyork", "york"]
    # Each of two letters that are not heard costs 13 nats a frame, and a word of two gets 14.
    hotwords = listen(tmp_path, "ab\t7\n")
    assert text_of(hotwords.find_path([said("ab ab x")])) == "ab ab x"


def test_a_phrase_has_its_words_for_itself(tmp_path: Path) -> None:
    for text in "party", "the party is", "artist", "smart":
        heard = said(text)
        for boost in 1.5, 6.0:
            path = listen(tmp_path, f"art\t{boost}").find_path([heard])
            assert path == greedy_path([heard], UNITS.blank_id)
    for text in "art", "the art", "art is", "|art|":
        assert phrases_of(listen(tmp_path, "art").find_path([said(text)])) == ["art"]


def test_confidences_are_of_the_model_alone(tmp_path: Path) -> None:
    heard = said("the cVt", V="a")
    path = listen(tmp_path, "cat\t9").find_path([heard])
    assert text_of(path) == "the cat"
    for token in path:
        assert token.log_prob == pytest.approx(
            float(heard[token.first_frame : token.last_frame + 1, token.symbol_id].mean())
        )
    assert path[-2].log_prob == pytest.approx(math.log(0.3))


@pytest.mark.parametrize("frames", [20, 45, 100])
def test_long_recordings_are_parted_at_pauses(tmp_path: Path, frames: int) -> None:
    pause = said("|")[[0, 2, 2, 2, 2, 2]]
    heard = torch.cat([said("the cVt", V="a"), pause] * 20)
    path = listen(tmp_path, "cat", frames=frames).find_path(heard.split(17))
    assert text_of(path) == " ".join(["the cat"] * 20)
    assert len({id(token.spot) for token in path if token.spot}) == 20
    first = [token.first_frame for token in path if token.spot]
    assert first == [token.first_frame for token in listen(tmp_path, "cat").find_path([heard]) if token.spot]
    # A cut inside a word is no border.
    heard = said("abcdefgh" * 6)
    assert listen(tmp_path, "abc\t9\nfgh\t9", frames=10).find_path([heard]) == greedy_path([heard], UNITS.blank_id)


def test_what_is_shown_is_one_word_with_its_times(tmp_path: Path) -> None:
    heard = said("a k two k two b")
    geometry = FrameGeometry((160,), (160,))

    def words(table: str) -> list[tuple[str, float, float]]:
        path = listen(tmp_path, table).find_path([heard])
        found = words_of_path(path, UNITS, geometry, 160 * len(heard))
        return [(word.text, word.start, word.end) for word in found]

    plain = words("zzz")
    assert words("k two") == plain
    [a, k, two, k2, two2, b] = plain
    shown = words("k two\t\tK2 \n")
    assert shown == [a, ("K2", k[1], two[2]), ("K2", k2[1], two2[2]), b]
    assert words("two k two\t\tNew York") == [a, k, ("New York", two[1], two2[2]), b]
    assert [word[0] for word in words("two\t0\tII")] == ["a", "k", "II", "k", "II", "b"]


def test_letters_have_the_case_of_the_model(tmp_path: Path) -> None:
    assert phrases_of(listen(tmp_path, "CaT\n").find_path([said("the cat")])) == ["cat"]
    assert phrases_of(listen(tmp_path, "É\n").find_path([said("é")])) == ["é"]
    capitals = Letters(tuple(symbol.upper() if len(symbol) == 1 else symbol for symbol in UNITS.symbols))
    for table in "cat", "CAT":
        assert text_of(listen(tmp_path, table, capitals).find_path([said("the cat")]), capitals) == "THE CAT"
        [phrase] = listen(tmp_path, table, capitals).spotter.phrases
        assert phrase == Phrase(tuple(capitals.encode("CAT")[:-1]), 3 * BOOST)


def test_what_the_model_cannot_spell_is_said_in_a_line(tmp_path: Path) -> None:
    expected = r"hot\.tsv: 2 of 3 phrases cannot be .* such as 'K2'; it lacks '2' \(U\+0032\), 'ø' \(U\+00F8\)$"
    with pytest.warns(UserWarning, match=expected) as warned:
        assert len(listen(tmp_path, "K2\n\ncat\nbjørn\n").spotter.phrases) == 1
    assert len(warned) == 1


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "hot.tsv: expected phrases, found none"),
        ("K2\n", "hot.tsv: 1 of 1 phrases cannot"),
        ("a\tb\n", "hot.tsv:1: expected a boost of 0 or more nats a letter, found 'b'"),
        ("c\n\na\t-1\n", "hot.tsv:3: expected a boost"),
        ("a\tnan\n", "hot.tsv:1: expected a boost"),
        ("a\tinf\n", "hot.tsv:1: expected a boost"),
        ("\t1\tA\n", "hot.tsv:1: expected a phrase, a boost and what to write"),
        ("a\t1\tA\tB\n", "hot.tsv:1: expected a phrase"),
        ("cat\nCat\n", "hot.tsv:2: expected each phrase once, found 'Cat' again"),
    ],
)
def test_a_wrong_table_is_a_line(tmp_path: Path, table: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        listen(tmp_path, table)


def test_what_cannot_be_read_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.tsv: No such file"):
        Hotwords.read(tmp_path / "no.tsv", UNITS)
    (tmp_path / "latin1.tsv").write_bytes(b"caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin1\.tsv: expected UTF-8"):
        Hotwords.read(tmp_path / "latin1.tsv", UNITS)


@pytest.fixture
def search(tmp_path: Path) -> BeamSearch:
    write_arpa(tmp_path / "lm.arpa", estimate_ngrams(["the cut is", "the cut was", "is the cut"], 2))
    return BeamSearch(BeamSearchConfig(lm=tmp_path / "lm.arpa", unknown_score=-20.0), UNITS)


def test_a_word_that_the_language_model_lacks_is_found(search: BeamSearch, tmp_path: Path) -> None:
    heard = said("the cVt is", V="u")
    assert text_of(search.find_path([heard])) == "the cut is"
    path = search.find_path([heard], listen(tmp_path, "cvt\t3"))
    assert text_of(path) == "the cvt is"
    assert phrases_of(path) == ["cvt"]
    assert all(token.log_prob == pytest.approx(math.log(0.9)) for token in path if token.spot is None)
    heard_v = next(token for token in path if UNITS.symbols[token.symbol_id] == "v")
    assert heard_v.log_prob == pytest.approx(math.log(0.6))
    for text in "cVt", "cVt the cut is", "is the cVt", "cVt cVt cVt":
        path = search.find_path([said(text, V="u")], listen(tmp_path, "cvt\t6"))
        assert text_of(path) == text.lower()
        assert phrases_of(path) == ["cvt"] * text.count("V")


def test_the_language_model_may_know_better(search: BeamSearch, tmp_path: Path) -> None:
    heard = said("the cVt is", V="u")
    hotwords = listen(tmp_path, "cvt\t0.1\ndog\t0.1")
    assert phrases_of(hotwords.find_path([heard])) == ["cvt"]
    assert search.find_path([heard], hotwords) == search.find_path([heard])


def test_a_search_finds_what_it_found_where_no_phrase_is_near(search: BeamSearch, tmp_path: Path) -> None:
    hotwords = listen(tmp_path, "quetzalcoatl\nxylophone jazz\t1.5\tX\n")
    for seed in range(5):
        randomness = torch.Generator().manual_seed(seed)
        log_probs = (3 * torch.randn(40, len(UNITS), generator=randomness)).log_softmax(dim=1)
        assert search.find_path([log_probs], hotwords) == search.find_path([log_probs])


def test_phrases_that_lose_leave_no_trace(search: BeamSearch, tmp_path: Path) -> None:
    search = search.reweighted(
        search.config.model_copy(update={"beam_size": 2, "lm_weight": 3.0, "unknown_score": -3.0})
    )
    randomness = torch.Generator().manual_seed(0)
    hotwords = listen(tmp_path, "".join(f"{first}{second}\t3\n" for first in "aeiou" for second in "tnscu"))
    num_lost = num_won = 0
    for _ in range(150):
        letters = torch.randint(2, 30, (12,), generator=randomness)
        letters[::4] = UNITS.delimiter_id
        log_probs = 2 * torch.randn(12, len(UNITS), generator=randomness)
        log_probs[range(12), letters] += 3
        log_probs = log_probs.log_softmax(dim=1)
        path, plain = search.find_path([log_probs], hotwords), search.find_path([log_probs])
        if any(token.spot for token in path):
            num_won += 1
        else:
            num_lost += bool(hotwords.find(log_probs))
            assert path == plain
    assert min(num_lost, num_won) > 5
