"""The ABX test on features whose answer is known."""

import numpy as np
import pytest

from speechssl.evaluate.abx import abx_error, draw_triples

NUM_LETTERS, NUM_UTTERANCES = 5, 12
# Each letter twice in each utterance, whose speakers take turns.
LETTERS = [letter for _ in range(NUM_UTTERANCES) for letter in (*range(NUM_LETTERS), *range(NUM_LETTERS))]
UTTERANCES = [utterance for utterance in range(NUM_UTTERANCES) for _ in range(2 * NUM_LETTERS)]
SPEAKERS = ["anna" if utterance % 2 else "ben" for utterance in UTTERANCES]
TRIPLES = draw_triples(LETTERS, SPEAKERS, UTTERANCES, 50, 2, seed=0)


def test_triples_are_what_they_should_be() -> None:
    letters, utterances, speakers = np.array(LETTERS), np.array(UTTERANCES), np.array(SPEAKERS)
    a, b, x = TRIPLES.a, TRIPLES.b, TRIPLES.x
    assert (letters[a] == letters[x]).all()
    assert (letters[b] != letters[x]).all()
    assert (utterances[a] != utterances[x]).all()
    assert (utterances[b] != utterances[x]).all()
    assert (speakers[a] == speakers[x]).all()
    assert (speakers[b] == speakers[x]).all()
    pairs = set(zip(letters[x], letters[b], speakers[x], strict=True))
    assert len(set(TRIPLES.pair)) == len(pairs) == 2 * NUM_LETTERS * (NUM_LETTERS - 1)
    assert np.bincount(TRIPLES.pair).tolist() == [50] * len(pairs)


def test_the_same_seed_draws_the_same() -> None:
    again, other = (draw_triples(LETTERS, SPEAKERS, UTTERANCES, 50, 2, seed) for seed in (0, 1))
    assert (again.a == TRIPLES.a).all()
    assert (other.a != TRIPLES.a).any()


def test_rare_letters_and_single_utterances_have_no_triples() -> None:
    assert not len(draw_triples([0, 0, 1, 1], ["a"] * 4, [0, 1, 0, 1], 5, 3, 0).pair)  # two tokens of each
    assert not len(draw_triples([0, 0, 1, 1], ["a"] * 4, [0, 0, 0, 0], 5, 2, 0).pair)
    assert len(draw_triples([0, 0, 1, 1], ["a"] * 4, [0, 1, 0, 1], 5, 2, 0).pair)


def test_letters_are_told_without_an_error_and_noise_by_chance() -> None:
    generator = np.random.default_rng(0)
    letters = np.eye(NUM_LETTERS, dtype=np.float32)[LETTERS]
    noise = generator.standard_normal((len(LETTERS), 40)).astype(np.float32)
    assert abx_error(letters + 0.01 * noise[:, :NUM_LETTERS], TRIPLES) == 0
    assert abx_error(noise, TRIPLES) == pytest.approx(0.5, abs=0.05)
    assert abx_error(np.ones((len(LETTERS), 3), np.float32), TRIPLES) == 0.5  # all ties


def test_what_only_the_utterance_or_the_voice_shows_is_no_help() -> None:
    generator = np.random.default_rng(0)
    noise = generator.standard_normal((len(LETTERS), 40)).astype(np.float32)
    of_utterance = generator.standard_normal((NUM_UTTERANCES, 40)).astype(np.float32)[UTTERANCES]
    assert abx_error(3 * of_utterance + 0.1 * noise, TRIPLES) == pytest.approx(0.5, abs=0.05)


def test_pairs_count_alike_however_frequent() -> None:
    """One letter of three cannot be told from another: two of six pairs err, in half of the cases."""
    letters = [0] * 60 + [1] * 6 + [2] * 6
    utterances = [number % 6 for number in range(len(letters))]
    triples = draw_triples(letters, ["a"] * len(letters), utterances, 400, 2, seed=0)
    generator = np.random.default_rng(0)
    sounds = generator.standard_normal((2, 30))[[min(letter, 1) for letter in letters]]  # 1 and 2 sound alike
    features = (sounds + 0.1 * generator.standard_normal(sounds.shape)).astype(np.float32)
    assert abx_error(features, triples) == pytest.approx(2 / 6 / 2, abs=0.08)
