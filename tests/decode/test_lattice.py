"""Lattices against all of their paths, and all paths of the CTC model."""

import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby, pairwise, product
from pathlib import Path

import pytest
import torch

from speechssl.data.pieces import SPACE, Pieces
from speechssl.data.tokens import Tokens
from speechssl.data.units import BLANK, Letters, Units
from speechssl.decode.arpa import write_arpa
from speechssl.decode.beam_search import BeamSearch
from speechssl.decode.kneser_ney import estimate_ngrams
from speechssl.decode.lattice import Arc, Lattice
from speechssl.decode.settings import BeamSearchConfig
from speechssl.decode.texts import spell_texts

LETTERS = Letters.from_texts(["ab"])
PIECES = Pieces((BLANK, SPACE, "b", f"{SPACE}a"), (0.0, -1.0, -1.0, -1.0))
THAI = Tokens(("-", "ก", "ข"), "-")  # without spaces
WORDS = ["a ab", "ab ab a", "b"]
NUM_FRAMES = 6
WEIGHTS = {"lm_weight": 0.7, "word_score": 0.4, "unknown_score": -1.5}
WIDE = {"beam_size": 10_000, "beam_threshold": 1e6, "min_symbol_log_prob": -1e6}


def make_search(folder: Path, texts: list[str], units: Units, **settings: float) -> BeamSearch:
    write_arpa(folder / "lm.arpa", estimate_ngrams(texts, 2))
    return BeamSearch(BeamSearchConfig.from_dict({"lm": str(folder / "lm.arpa"), **settings}, "test"), units)


def paths_of(lattice: Lattice) -> Iterator[tuple[Arc, ...]]:
    leaving = defaultdict(list)
    for arc in lattice.arcs:
        leaving[arc.source].append(arc)

    def walk(node: int) -> Iterator[tuple[Arc, ...]]:
        if node == len(lattice.times) - 1:
            yield ()
        for arc in leaving[node]:
            yield from ((arc, *rest) for rest in walk(arc.target))

    return walk(0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("units", "texts"),
    [(LETTERS, WORDS), (PIECES, WORDS), (LETTERS, [*spell_texts(WORDS)]), (THAI, [*spell_texts(["กข", "ขขก"])])],
    ids=["words", "pieces", "letters", "no spaces"],
)
def test_scores_on_every_path_are_those_of_its_text(tmp_path: Path, units: Units, texts: list[str], seed: int) -> None:
    search = make_search(tmp_path, texts, units, **WEIGHTS, **WIDE)
    log_probs = 2 * torch.randn(NUM_FRAMES, len(units), generator=torch.Generator().manual_seed(seed))
    log_probs = log_probs.log_softmax(dim=1)
    likeliest: defaultdict[str, float] = defaultdict(lambda: -math.inf)
    for symbols in product(range(len(units)), repeat=NUM_FRAMES):
        mass = sum(row[symbol] for row, symbol in zip(log_probs.tolist(), symbols, strict=True))
        text = units.decode(symbol for symbol, _ in groupby(symbols))
        likeliest[text] = max(likeliest[text], mass)
    [sentence] = search.find_sentences([log_probs], num_texts=100_000, with_lattices=True)
    lattice = sentence.lattice
    assert lattice is not None
    lm_scores = {found.text: found.lm for found in sentence.hypotheses}
    has_spaces = " " in "".join(lm_scores)
    paths = list(paths_of(lattice))
    best: defaultdict[str, float] = defaultdict(lambda: -math.inf)
    for path in paths:
        text = (" " if has_spaces else "").join(arc.text for arc in path)
        assert sum(arc.lm for arc in path) == pytest.approx(lm_scores[text])
        assert all(one.end <= other.start == lattice.times[other.source] for one, other in pairwise(path))
        best[text] = max(best[text], sum(arc.acoustic for arc in path))
    for text, mass in best.items():
        assert mass <= likeliest[text] + 1e-5, text
    first = sentence.hypotheses[0].text
    assert best[first] == pytest.approx(likeliest[first])
    assert {found.text for found in sentence.hypotheses[:30]} <= best.keys()
    assert len(lattice.arcs) < sum(map(len, paths))  # words are shared

    masses = [math.exp(sum(arc.acoustic + arc.lm for arc in path)) for path in paths]
    for arc in lattice.arcs:
        share = sum(mass for mass, path in zip(masses, paths, strict=True) if arc in path) / sum(masses)
        assert arc.posterior == pytest.approx(share, abs=1e-9)


def test_a_word_that_could_be_another_is_less_likely_than_its_neighbor(tmp_path: Path) -> None:
    search = make_search(tmp_path, ["a ab"] * 2, LETTERS, lm_weight=0.0, word_score=0.0, unknown_score=0.0)
    a, b, delimiter = (LETTERS.symbols.index(symbol) for symbol in "ab|")
    probs = torch.full((5, len(LETTERS)), 1e-6)
    for row, shares in enumerate(({a: 1}, {delimiter: 1}, {a: 0.6, b: 0.4}, {delimiter: 1}, {b: 1})):
        for symbol, share in shares.items():
            probs[row, symbol] = share
    [sentence] = search.find_sentences([probs.log()], with_lattices=True)
    of_words = {token.first_frame: token.posterior for token in sentence.path if token.symbol_id != delimiter}
    assert of_words == {0: pytest.approx(1, abs=1e-3), 2: pytest.approx(0.6, abs=1e-3), 4: pytest.approx(1, abs=1e-3)}


def test_a_stretch_without_words_has_an_arc_of_nothing(tmp_path: Path) -> None:
    search = make_search(tmp_path, WORDS, LETTERS)
    silence = torch.full((4, len(LETTERS)), 1e-9).index_fill(1, torch.tensor(LETTERS.blank_id), 1.0).log()
    [sentence] = search.find_sentences([silence], with_lattices=True)
    assert sentence.lattice is not None
    assert [(arc.text, arc.start, arc.end) for arc in sentence.lattice.arcs if arc.posterior > 0.9] == [("", 0, 4)]
    assert sentence.path == []
