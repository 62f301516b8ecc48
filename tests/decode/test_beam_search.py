import contextlib
import math
from collections import defaultdict
from collections.abc import Callable
from itertools import groupby, product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from speechssl.data.phonemes import Phonemes
from speechssl.data.pieces import SPACE, Pieces
from speechssl.data.tokens import Tokens
from speechssl.data.units import BLANK, Letters, Units
from speechssl.decode.arpa import write_arpa
from speechssl.decode.beam_search import BeamSearch
from speechssl.decode.greedy import greedy_path
from speechssl.decode.kneser_ney import estimate_ngrams
from speechssl.decode.settings import BeamSearchConfig
from speechssl.decode.texts import spell_texts
from speechssl.errors import AudioError, ConfigError, LanguageModelError

VOCABULARY = Letters.from_texts(["ab"])
TEXTS = ["a ab", "ab ab a", "ab", "ba ab"]
WIDE = {"beam_size": 10_000, "beam_threshold": 1e6, "min_symbol_log_prob": -1e6}

Make = Callable[..., BeamSearch]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A search with a model of texts."""

    def make(
        texts: list[str] = TEXTS, vocabulary: Units = VOCABULARY, frames: int | None = None, **settings: float
    ) -> BeamSearch:
        write_arpa(tmp_path / "lm.arpa", estimate_ngrams(texts, 2))
        config = BeamSearchConfig.from_dict({"lm": str(tmp_path / "lm.arpa"), **settings}, "test")
        return BeamSearch(config, vocabulary, frames)

    return make


def said(*frames: str, vocabulary: Letters = VOCABULARY, sure: float = 0.9) -> Tensor:
    """Log probabilities of frames of a symbol each, ``-`` the blank."""
    probs = torch.full((len(frames), len(vocabulary)), (1 - sure) / (len(vocabulary) - 1))
    for row, symbol in zip(probs, frames, strict=True):
        row[0 if symbol == "-" else vocabulary.symbols.index(symbol)] = sure
    return probs.log()


def text_of(search: BeamSearch, log_probs: Tensor) -> str:
    return search.units.decode(token.symbol_id for token in search.find_path([log_probs]))


def test_units_without_a_word_delimiter_are_refused(make: Make) -> None:
    class Endless(Letters):
        delimiter_id = None  # type: ignore[assignment]

    with pytest.raises(
        LanguageModelError, match=r"lm\.arpa: .* needs a CTC model with .* '\|', found none among its 4$"
    ):
        make(vocabulary=Endless(VOCABULARY.symbols))


PIECES = Pieces((BLANK, SPACE, "a", "b", f"{SPACE}a", "ab"), (0.0, *[-1.0] * 5))
PHONEMES = Phonemes.from_texts(["a/b ab"])
EACH_A_WORD = Phonemes.from_texts(["a b ab"])


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    ("units", "texts", "num_frames"),
    [
        (VOCABULARY, TEXTS, 6),
        (PIECES, TEXTS, 5),
        (PHONEMES, ["a a/b", "a/b ab", "ab", "b/a"], 5),
        (EACH_A_WORD, ["a b ab", "b a", "b ab"], 6),
    ],
    ids=["letters", "pieces", "phonemes", "phonemes, each a word"],
)
def test_a_wide_search_finds_the_best_of_all_texts(
    make: Make, units: Units, texts: list[str], num_frames: int, seed: int
) -> None:
    weights = {"lm_weight": 0.7, "word_score": 0.9, "unknown_score": -1.5}
    search = make(texts, units, **weights, **WIDE)
    generator = torch.Generator().manual_seed(seed)
    log_probs = (2 * torch.randn(num_frames, len(units), generator=generator)).log_softmax(dim=1)
    masses: defaultdict[str, float] = defaultdict(float)
    for path in product(range(len(units)), repeat=num_frames):
        mass = math.exp(sum(row[symbol] for row, symbol in zip(log_probs.tolist(), path, strict=True)))
        masses[units.decode(symbol for symbol, _ in groupby(path))] += mass

    def score(text: str) -> float:
        total, context = math.log(masses[text]), ("<s>",)
        for word in text.split():
            total += 0.7 * search.model.score(context, word) + 0.9 - 1.5 * (word not in search.model.words)
            context = (*context, word)
        return total + 0.7 * search.model.score(context, "</s>")

    assert text_of(search, log_probs) == max(masses, key=score)


NO_SPACES = Tokens(("-", "a", "b", "c"), "-")


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("units", [VOCABULARY, NO_SPACES], ids=["with spaces", "without"])
def test_with_a_model_of_letters_each_letter_counts(make: Make, units: Units, seed: int) -> None:
    weights = {"lm_weight": 0.7, "word_score": 0.4, "unknown_score": -1.5}
    search = make(list(spell_texts(["ab ba", "aab", "b ab"])), units, **weights, **WIDE)
    generator = torch.Generator().manual_seed(seed)
    log_probs = (2 * torch.randn(5, len(units), generator=generator)).log_softmax(dim=1)
    masses: defaultdict[str, float] = defaultdict(float)
    for path in product(range(len(units)), repeat=5):
        mass = math.exp(sum(row[symbol] for row, symbol in zip(log_probs.tolist(), path, strict=True)))
        masses[units.decode(symbol for symbol, _ in groupby(path))] += mass

    def lm_score(text: str) -> float:
        total, context = 0.0, ("<s>",)
        for letter in "".join(f"{word}|" for word in text.split()):
            total += 0.7 * search.model.score(context, letter) + 0.4 - 1.5 * (letter not in search.model.words)
            context = (*context, letter)
        return total + 0.7 * search.model.score(context, "</s>")

    [sentence] = search.find_sentences([log_probs], num_texts=10_000)
    assert {found.text for found in sentence.hypotheses} == masses.keys()
    scores = [found.score for found in sentence.hypotheses]
    assert scores == sorted(scores, reverse=True)
    for found in sentence.hypotheses:
        expected = math.log(masses[found.text]), lm_score(found.text)
        assert (found.acoustic, found.lm) == (pytest.approx(expected[0]), pytest.approx(expected[1]))


def test_a_model_of_letters_needs_units_of_letters(make: Make) -> None:
    with pytest.raises(LanguageModelError, match="of letters needs a CTC model of letters, found the unit 'ab'"):
        make(list(spell_texts(["ab"])), PIECES)


def plain_search(search: BeamSearch, log_probs: Tensor) -> list[tuple[str, float, float]]:
    """Texts with the scores of their sound and words, the best first, by the search as its papers write it."""
    config, model, delimiter = search.config, search.model, VOCABULARY.delimiter_id

    def word_score(context: list[str], word: str) -> float:
        is_unknown = word not in model.words
        score = config.lm_weight * model.score(tuple(context), "<unk>" if is_unknown else word) + config.word_score
        return score + config.unknown_score * is_unknown

    def words_score(labels: tuple[int, ...], is_whole: bool) -> float:
        *words, last = VOCABULARY.decode(labels).split() or [""]
        is_ended = is_whole or labels[-1:] == (delimiter,)
        total, context = 0.0, ["<s>"]
        for word in [*words, last] if is_ended and last else words:
            total += word_score(context, word)
            context.append(word)
        if is_whole:
            return total + config.lm_weight * model.score(tuple(context), "</s>")
        guesses = [config.lm_weight * model.score((), word) for word in model.words if word.startswith(last)]
        unknown = config.lm_weight * model.score((), "<unk>") + config.unknown_score
        return total if is_ended or not last else total + max(guesses, default=unknown)

    def rank(labels: tuple[int, ...]) -> float:
        return math.log(sum(beams[labels])) + words_score(labels, is_whole=False)

    beams = {(): [1.0, 0.0]}  # the probabilities of paths that end in a blank, and of others
    for frame in log_probs.tolist():
        grown: defaultdict[tuple[int, ...], list[float]] = defaultdict(lambda: [0.0, 0.0])
        for labels, (blank, repeat) in beams.items():
            for symbol, score in enumerate(map(math.exp, frame)):
                if frame[symbol] < min(config.min_symbol_log_prob, max(frame)):
                    continue
                if symbol == VOCABULARY.blank_id:
                    grown[labels][0] += (blank + repeat) * score
                elif symbol not in labels[-1:]:
                    grown[(*labels, symbol)][1] += (blank + repeat) * score
                elif symbol == delimiter:
                    grown[labels][1] += (blank + repeat) * score
                else:
                    grown[labels][1] += repeat * score
                    grown[(*labels, symbol)][1] += blank * score
        beams = {labels: ends for labels, ends in grown.items() if sum(ends)}
        best = sorted(beams, key=rank, reverse=True)[: config.beam_size]
        beams = {labels: beams[labels] for labels in best if rank(labels) >= rank(best[0]) - config.beam_threshold}
    texts: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for labels, ends in beams.items():
        texts[VOCABULARY.decode(labels)].append((sum(ends), words_score(labels, is_whole=True)))
    found = [(text, math.log(sum(mass for mass, _ in of)), max(score for _, score in of)) for text, of in texts.items()]
    return sorted(found, key=lambda scored: -scored[1] - scored[2])


@pytest.mark.parametrize("seed", range(8))
def test_a_narrow_search_keeps_what_the_plain_one_keeps(make: Make, seed: int) -> None:
    settings = [
        {"beam_size": 5},
        {"beam_size": 30, "beam_threshold": 4.0, "word_score": -1.0},
        {"beam_size": 12, "min_symbol_log_prob": -1.5, "unknown_score": -3.0},
        {"beam_size": 8, "unknown_score": 0.0, "lm_weight": 0.3},
    ][seed % 4]
    search = make(frames=None, **settings)
    log_probs = (3 * torch.randn(25, 4, generator=torch.Generator().manual_seed(seed))).log_softmax(dim=1)
    [sentence] = search.find_sentences([log_probs], num_texts=100)
    plain = plain_search(search, log_probs.double())
    assert len(plain) > 1
    assert [found.text for found in sentence.hypotheses] == [text for text, _, _ in plain]
    for found, (_, acoustic, lm) in zip(sentence.hypotheses, plain, strict=True):
        assert (found.acoustic, found.lm) == (pytest.approx(acoustic, abs=1e-9), pytest.approx(lm, abs=1e-9))


def test_all_paths_of_a_text_count(make: Make) -> None:
    search = make(lm_weight=0.0, word_score=0.0, unknown_score=0.0)
    log_probs = torch.tensor([[0.6, 1e-9, 0.4, 1e-9]] * 2).log()  # blank twice: 0.36; a in one of three ways: 0.64
    assert greedy_path([log_probs], VOCABULARY.blank_id) == []
    assert text_of(search, log_probs) == "a"


def test_the_language_model_decides_what_the_ear_cannot(make: Make) -> None:
    vocabulary = Letters.from_texts(["catsno"])
    heard = said(*"cat|sat|o", vocabulary=vocabulary)
    heard[8] = torch.tensor([[0.01, 0.01, *(0.45 if letter in "on" else 0.02 for letter in "acnost")]]).log()
    for last in "on":
        search = make(["cat", "sat", f"cat sat {last}"] * 3, vocabulary)
        assert text_of(search, heard) == f"cat sat {last}"


def test_unknown_words_are_spelled_at_a_price(make: Make) -> None:
    heard = said(*"bb-b-|", sure=0.8)
    assert text_of(make(lm_weight=0.3, unknown_score=-1.0), heard) == "bb"
    assert text_of(make(unknown_score=-100.0), heard) in {"ab", "ba", "a", ""}


def test_more_for_a_word_makes_for_more_words(make: Make) -> None:
    heard = said(*"a-|-a-b", sure=0.5)
    numbers = [len(text_of(make(word_score=score, unknown_score=0.0), heard).split()) for score in (-20.0, 0.0, 20.0)]
    assert numbers == sorted(numbers)
    assert numbers[0] < numbers[2]


def test_tokens_lie_where_they_are_said(make: Make) -> None:
    heard = said(*"--aa-b||---ab-")
    for parts in [heard], heard.split(5):
        path = make().find_path(parts)
        found = [(VOCABULARY.symbols[token.symbol_id], token.first_frame, token.last_frame) for token in path]
        assert found == [("a", 2, 3), ("b", 5, 5), ("|", 6, 7), ("a", 11, 11), ("b", 12, 12)]
        assert all(token.log_prob == pytest.approx(math.log(0.9)) for token in path)


def test_units_that_are_no_text_are_passed_over(make: Make) -> None:
    units = Letters((*VOCABULARY.symbols, "<unk>"))
    heard = said(*"ab|?a-b", vocabulary=Letters((*VOCABULARY.symbols, "?")), sure=0.999)
    assert text_of(make(vocabulary=units), heard) == "ab ab"


def test_delimiters_before_the_first_word_are_no_part_of_it(make: Make) -> None:
    path = make().find_path([said(*"||||ab|", sure=0.97)])
    found = [(VOCABULARY.symbols[token.symbol_id], token.first_frame) for token in path]
    assert found == [("|", 0), ("a", 4), ("b", 5), ("|", 6)]


def test_other_pieces_than_the_likeliest_spell_a_word_too(make: Make) -> None:
    """The look-ahead knows words by their letters: a narrow beam keeps them."""
    heard = said(SPACE, "a", "-", "b", SPACE, "a", "b", vocabulary=PIECES, sure=0.9999)  # encode says ▁ ab
    for frame in (1, 5):
        heard[frame, 0] = math.log(0.1)  # what has no letter yet may live
    narrow = make(["ab"] * 3, PIECES, beam_threshold=8.0, unknown_score=-30.0)
    assert text_of(narrow, heard) == "ab ab"


def test_words_that_are_several_units_of_a_word_each_are_not_found(make: Make) -> None:
    with pytest.warns(UserWarning, match="2 of 3 words cannot be spelled"):
        make(["a/b b/a a"], EACH_A_WORD)
    foreign = Tokens(("<s>", "a", "b"), "<s>", each_is_a_word=True)
    with pytest.warns(UserWarning, match="2 of 3 words cannot be spelled"):
        make(["ab ba a"], foreign)


@pytest.mark.parametrize("frames", ["", "-", "---", "|", "-|-|"])
def test_silence_has_no_text(make: Make, frames: str) -> None:
    assert text_of(make(word_score=0.0), said(*frames, sure=0.99)) == ""


def test_long_recordings_are_parted_in_long_pauses(make: Make) -> None:
    sentence = "ab|a--|" + "-" * 8
    heard = said(*(sentence * 20))
    letters = [(symbol, frame) for frame, symbol in enumerate(sentence * 20) if symbol in "ab"]
    search = make(frames=31)
    for parts in [heard], heard.split(37):
        path = search.find_path(parts)
        found = [(VOCABULARY.symbols[token.symbol_id], token.first_frame) for token in path]
        assert [(symbol, frame) for symbol, frame in found if symbol != "|"] == letters
        assert VOCABULARY.decode(token.symbol_id for token in path) == " ".join(["ab a"] * 20)
        assert [token.log_prob for token in path].count(0.0) >= 9  # the cuts
    assert search.find_path([]) == []


@pytest.mark.parametrize("frames", range(10, 18, 2))
def test_words_on_both_sides_of_a_cut_stay_two(make: Make, frames: int) -> None:
    heard = said(*"a-|b----------|a-|a", sure=0.99)
    assert text_of(make(frames=frames, unknown_score=0.0), heard) == "a b a a"


def test_without_a_pause_it_is_cut_all_the_same(make: Make) -> None:
    path = make(frames=30).find_path([said(*("ab" * 50))])
    assert path[-1].last_frame == 99


@pytest.mark.parametrize("lm_weight", [0.5, 1.0, 1.5])
def test_long_unknown_words_do_not_crowd_out_known_ones(make: Make, lm_weight: float) -> None:
    texts = ["doctor zyx today"] * 30 + ["doctor today", "today"] * 20
    vocabulary = Letters.from_texts(texts)
    heard = said(*"d-o-c-t-o-r-|z-y-x-|t-o-d-a-y-|", vocabulary=vocabulary)
    assert text_of(make(texts, vocabulary, lm_weight=lm_weight), heard) == "doctor zyx today"


def test_a_model_that_says_nan_is_an_error(make: Make) -> None:
    heard = said(*"ab|")
    heard[1] = math.nan
    with pytest.raises(AudioError, match="expected probabilities of the model, found NaN"):
        make().find_path([heard])


def test_a_narrow_beam_forgets_and_finds(make: Make) -> None:
    heard = said(*"a-|-aab|" * 30, sure=0.7)
    wide, narrow = (make(beam_size=size, beam_threshold=1e6) for size in (100, 3))
    assert text_of(narrow, heard) == text_of(wide, heard) == " ".join(["a ab"] * 30)


def test_a_model_that_cannot_be_spelled_is_refused(make: Make) -> None:
    with pytest.raises(
        LanguageModelError, match=r"expected words of the model's letters 'ab', found none of 2, such as 'AB'"
    ):
        make(["AB", "BA"])


def test_settings_come_from_a_toml_file_or_are_the_defaults(make: Make, tmp_path: Path) -> None:
    make()
    (tmp_path / "lm.toml").write_text('lm = "lm.arpa"\nlm_weight = 0.25\n')
    config = BeamSearchConfig.read(tmp_path / "lm.toml")
    assert (config.lm, config.lm_weight) == (tmp_path / "lm.arpa", 0.25)
    with contextlib.chdir(tmp_path.parent):
        relative = Path(tmp_path.name)
        assert BeamSearchConfig.read(relative / "lm.toml").lm == relative / "lm.arpa"
    assert config.describe() == "beam 50, lm.arpa x 0.25, word +2, unknown -10"
    assert BeamSearchConfig.read(tmp_path / "lm.arpa") == BeamSearchConfig(lm=tmp_path / "lm.arpa")
    (tmp_path / "lm.toml").write_text('lm = "lm.arpa"\nweight = 0.25\n')
    with pytest.raises(ConfigError, match=r"lm\.toml: .*weight"):
        BeamSearchConfig.read(tmp_path / "lm.toml")
