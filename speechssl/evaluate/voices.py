"""Questions about the language and the voice of utterances that a corpus can answer.

In a corpus where each voice speaks a language of its own, whoever knows the one knows the other. Two questions are free
of that, where a voice speaks several languages: which of them it speaks, and whose voice it is in a language that it
was not learned in.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from speechssl.data.manifest import Manifest
from speechssl.errors import ConfigError
from speechssl.rng import keyed_generator

Indices = npt.NDArray[np.int64]

_NUM_FOLDS = 5
_PURPOSE = 81  # of the generators
GROUP_SIZE = 100  # utterances of a speaker in a language, at most


@dataclass(frozen=True)
class Question:
    """Something to be read from utterances, by classifiers that never hear in training what they are tested on.

    Attributes:
        name: "language", "voice", "language_one_voice" or "voice_new_language".
        labels: (N,) of all utterances.
        splits: Numbers of utterances to train on and to test.
    """

    name: str
    labels: Indices
    splits: tuple[tuple[Indices, Indices], ...]

    @property
    def chance(self) -> float:
        """The share that is right if answers are drawn from the labels of each training part."""
        right = [
            np.bincount(self.labels[train], minlength=self.labels.max() + 1)[self.labels[test]] / len(train)
            for train, test in self.splits
        ]
        return float(np.concatenate(right).mean())


def choose_utterances(manifest: Manifest, seed: int) -> list[int]:
    """Return the numbers of at most `GROUP_SIZE` utterances of each speaker in each language, drawn at random.

    Raises:
        ConfigError: the manifest does not state speaker and language of each.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for number, utterance in enumerate(manifest):
        if not utterance.speaker or not utterance.language:
            raise ConfigError(f"{manifest.where(number)}: expected a speaker and a language, found none")
        groups.setdefault((utterance.speaker, utterance.language), []).append(number)
    randomness = keyed_generator(seed, _PURPOSE)
    return sorted(
        number for _, group in sorted(groups.items()) for number in randomness.permutation(group)[:GROUP_SIZE].tolist()
    )


def make_questions(speakers: Sequence[str], languages: Sequence[str], seed: int) -> list[Question]:
    """Return the questions that these utterances can answer.

    * "language" and "voice": of all utterances, in five folds.
    * "language_one_voice": of the utterances of each speaker of several languages, in five folds.
    * "voice_new_language": whose voice it is; each language of a speaker of several is left out of the training.
    """
    language_ids, voice_ids = (np.unique(names, return_inverse=True)[1] for names in (languages, speakers))
    of_voice = {voice: np.flatnonzero(voice_ids == voice) for voice in range(voice_ids.max() + 1)}
    several = [numbers for numbers in of_voice.values() if len(set(language_ids[numbers])) > 1]
    everything = np.arange(len(voice_ids))
    alone = [
        numbers[language_ids[numbers] == language] for numbers in several for language in set(language_ids[numbers])
    ]
    questions = [
        Question("language", language_ids, tuple(_folds(everything, seed))),
        Question("voice", voice_ids, tuple(_folds(everything, seed))),
        Question("language_one_voice", language_ids, tuple(s for numbers in several for s in _folds(numbers, seed))),
        Question("voice_new_language", voice_ids, tuple((np.setdiff1d(everything, test), test) for test in alone)),
    ]
    return [
        question
        for question in questions
        if question.splits and all(len(set(question.labels[train])) > 1 for train, _ in question.splits)
    ]


def _folds(numbers: Indices, seed: int) -> list[tuple[Indices, Indices]]:
    parts = np.array_split(keyed_generator(seed, _PURPOSE, len(numbers)).permutation(numbers), _NUM_FOLDS)
    return [(np.setdiff1d(numbers, part), part) for part in parts if len(part)]
