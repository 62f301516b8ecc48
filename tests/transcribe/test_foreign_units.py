"""Vocabularies as other toolkits have them: a model whose outputs are put in their order says the same."""

from pathlib import Path

import numpy as np
import pytest
import torch
from planted import VOCABULARY

from speechssl.checkpoint.native import save_model
from speechssl.checkpoint.reader import load_ctc
from speechssl.checkpoint.saved_model import CTCCheckpoint
from speechssl.data.units import BLANK, Letters
from speechssl.decode.arpa import write_arpa
from speechssl.decode.kneser_ney import estimate_ngrams
from speechssl.decode.settings import BeamSearchConfig
from speechssl.model.ctc import CTCModel, ctc_losses
from speechssl.transcribe.decoding import make_beam_search
from speechssl.transcribe.transcriber import Transcriber
from speechssl.transcribe.transcript import Transcript

_LETTERS = VOCABULARY.symbols[2:]
FOREIGN = {
    "capitals": ("<pad>", "<s>", "</s>", "<unk>", "|", *(letter.upper() for letter in reversed(_LETTERS))),
    "blank last": (*_LETTERS[:5], "|", *_LETTERS[5:], "[UNK]", BLANK),
}
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 48_000).astype(np.float32)


@pytest.fixture
def original(model_folder: Path) -> CTCCheckpoint:
    """A random model that says words of a few letters, and is not very sure."""
    checkpoint = load_ctc(model_folder, "cpu")
    with torch.no_grad():
        checkpoint.model.head.weight *= 0.5
        checkpoint.model.head.bias[:2] += 2
    return checkpoint


@pytest.fixture(params=FOREIGN)
def foreign(request: pytest.FixtureRequest, original: CTCCheckpoint, tmp_path: Path) -> CTCCheckpoint:
    """The same model with its outputs in another order, written and read."""
    symbols = FOREIGN[request.param]
    ours = [BLANK if symbol == "<pad>" else symbol.lower() for symbol in symbols]
    weights = dict(original.model.state_dict())
    head = CTCModel(original.description.encoder, len(symbols)).head
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(-1e4)  # of units that our vocabulary lacks
        for new, symbol in enumerate(ours):
            if symbol in VOCABULARY.symbols:
                old = VOCABULARY.symbols.index(symbol)
                head.weight[new], head.bias[new] = weights["head.weight"][old], weights["head.bias"][old]
    weights |= {"head.weight": head.weight, "head.bias": head.bias}
    save_model(tmp_path, original.description, weights, Letters(symbols))
    return load_ctc(tmp_path, "cpu")


def lower(transcript: Transcript) -> tuple[str, list[tuple[str, float, float, float]]]:
    words = [(word.text.lower(), word.start, word.end, pytest.approx(word.confidence)) for word in transcript.words]
    return transcript.text.lower(), words


def test_texts_words_times_and_confidences_are_the_same(original: CTCCheckpoint, foreign: CTCCheckpoint) -> None:
    found, expected = (Transcriber(checkpoint).transcribe(NOISE, 16_000) for checkpoint in (foreign, original))
    assert len(expected.words) > 3, "a test of nothing"
    assert lower(found) == lower(expected)


def test_a_stream_is_the_same(original: CTCCheckpoint, foreign: CTCCheckpoint) -> None:
    def words(checkpoint: CTCCheckpoint) -> list[tuple[str, float]]:
        results = list(Transcriber(checkpoint).stream(NOISE.reshape(-1, 1600), 16_000, 0.5))
        return [(word.text.lower(), word.start) for result in results for word in result.words]

    assert len(words(original)) > 3
    assert words(foreign) == words(original)


def test_a_language_model_in_lower_case_counts_the_same(
    original: CTCCheckpoint, foreign: CTCCheckpoint, tmp_path: Path
) -> None:
    said = Transcriber(original).transcribe(NOISE, 16_000).text.split()
    texts = [*said[::2], *(word[:-1] for word in said if word[1:])]
    write_arpa(tmp_path / "lm.arpa", estimate_ngrams(texts, 2))
    config = BeamSearchConfig(lm=tmp_path / "lm.arpa", lm_weight=1.0, word_score=1.0, unknown_score=-20.0)

    def transcribe(checkpoint: CTCCheckpoint) -> Transcript:
        return Transcriber(checkpoint, make_beam_search(config, checkpoint)).transcribe(NOISE, 16_000)

    expected = lower(transcribe(original))
    assert expected[0] != " ".join(said)
    assert any(len(word) > 3 for word in expected[0].split()), "a test of nothing"
    assert lower(transcribe(foreign)) == expected


def test_the_loss_is_the_same(original: CTCCheckpoint, foreign: CTCCheckpoint) -> None:
    texts, losses = ["hello a", "б"], []
    for checkpoint in (original, foreign):
        units = checkpoint.vocabulary
        labels = [units.encode(text) for text in texts]
        with torch.inference_mode():
            output = checkpoint.model(torch.from_numpy(NOISE).expand(len(texts), -1))
        joined, lengths = torch.tensor([*labels[0], *labels[1]]), [len(row) for row in labels]
        losses.append(ctc_losses(output, joined, output.frame_lengths.tolist(), lengths, units.blank_id))
    torch.testing.assert_close(losses[1], losses[0])


def test_special_units_are_no_text(foreign: CTCCheckpoint) -> None:
    units = foreign.vocabulary
    special = next(i for i in units.special_ids if i != units.blank_id)
    with torch.no_grad():
        foreign.model.head.bias[special] = 1e4
    assert Transcriber(foreign).transcribe(NOISE, 16_000).words == ()
    assert Transcriber(foreign).transcribe(NOISE, 16_000).text == ""
