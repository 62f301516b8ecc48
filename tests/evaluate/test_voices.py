import numpy as np
import pytest

from speechssl.data.manifest import Utterance, read_manifest, write_manifest
from speechssl.errors import ConfigError
from speechssl.evaluate import voices
from speechssl.evaluate.linear import read_right
from speechssl.evaluate.voices import choose_utterances, make_questions

# Anna speaks two languages, as Allison of the prompts does; Ben and Carla one each.
GROUPS = [("anna", "en"), ("anna", "es"), ("ben", "fr"), ("carla", "it")]
SPEAKERS, LANGUAGES = zip(*[group for group in GROUPS for _ in range(20)], strict=True)
QUESTIONS = {question.name: question for question in make_questions(SPEAKERS, LANGUAGES, seed=0)}


def test_what_can_be_asked() -> None:
    assert [*QUESTIONS] == ["language", "voice", "language_one_voice", "voice_new_language"]
    one_language = make_questions(["anna", "ben"] * 10, ["en"] * 20, seed=0)
    assert [question.name for question in one_language] == ["voice"]


@pytest.mark.parametrize("name", QUESTIONS)
def test_nothing_is_both_in_training_and_test(name: str) -> None:
    for train, test in QUESTIONS[name].splits:
        assert not set(train) & set(test)
        assert len(train)
        assert len(test)


def test_every_utterance_is_tested_once() -> None:
    for name, expected in (("language", range(80)), ("voice", range(80)), ("language_one_voice", range(40))):
        assert sorted(np.concatenate([test for _, test in QUESTIONS[name].splits])) == list(expected)


def test_a_new_language_of_a_voice_is_never_trained_on() -> None:
    for (train, test), language in zip(QUESTIONS["voice_new_language"].splits, ("en", "es"), strict=True):
        assert {LANGUAGES[number] for number in test} == {language}
        assert language not in {LANGUAGES[number] for number in train}
        assert {SPEAKERS[number] for number in train} == {"anna", "ben", "carla"}


def test_chance() -> None:
    chances = {name: question.chance for name, question in QUESTIONS.items()}
    assert chances["language"] == pytest.approx(1 / 4, abs=0.03)
    assert chances["voice"] == pytest.approx((2**2 + 1 + 1) / 16, abs=0.03)
    assert chances["language_one_voice"] == pytest.approx(1 / 2, abs=0.1)
    assert chances["voice_new_language"] == pytest.approx(1 / 3)


def share_right(name: str, features: np.ndarray) -> float:
    question = QUESTIONS[name]
    return float(
        np.concatenate(
            [
                read_right(features[train], question.labels[train], features[test], question.labels[test])
                for train, test in question.splits
            ]
        ).mean()
    )


def test_who_knows_the_language_alone_does_not_know_the_voice_in_a_new_one() -> None:
    generator = np.random.default_rng(0)
    noise = 0.1 * generator.standard_normal((80, 4)).astype(np.float32)
    of_language = np.eye(4, dtype=np.float32)[np.repeat(range(4), 20)] + noise
    of_voice = np.eye(4, dtype=np.float32)[np.repeat([0, 0, 1, 2], 20)] + noise
    assert share_right("voice", of_language) == share_right("language", of_language) == 1  # confounded
    assert share_right("voice_new_language", of_language) < 0.6
    assert share_right("voice_new_language", of_voice) == 1
    assert share_right("language_one_voice", of_voice) < 0.7
    assert share_right("language_one_voice", of_language) == 1


def test_few_of_each_are_chosen(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voices, "GROUP_SIZE", 7)
    utterances = [
        Utterance(str(tmp_path / "a.wav"), 100, start=number, speaker=speaker, language=language)
        for number, (speaker, language) in enumerate(zip(SPEAKERS, LANGUAGES, strict=True))
    ]
    write_manifest(tmp_path / "a.tsv", utterances, ".")
    chosen = choose_utterances(read_manifest(tmp_path / "a.tsv"), seed=0)
    assert [sum(number // 20 == group for number in chosen) for group in range(4)] == [7] * 4
    write_manifest(tmp_path / "b.tsv", [Utterance(str(tmp_path / "a.wav"), 100, text="a", language="en")], ".")
    with pytest.raises(ConfigError, match=r"b\.tsv:3: expected a speaker and a language, found none"):
        choose_utterances(read_manifest(tmp_path / "b.tsv"), seed=0)
