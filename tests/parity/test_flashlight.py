"""Against flashlight, which has KenLM inside: the same scores of sentences, the same texts as its lexicon decoder."""

import math
from pathlib import Path

import pytest
import torch

from speechssl.data.units import Letters
from speechssl.decode.arpa import write_arpa
from speechssl.decode.beam_search import BeamSearch
from speechssl.decode.kneser_ney import estimate_ngrams
from speechssl.decode.settings import BeamSearchConfig

kenlm = pytest.importorskip("flashlight.lib.text.decoder.kenlm")
flashlight = pytest.importorskip("flashlight.lib.text.dictionary")

TEXTS = [
    "please enter the number",
    "please hold",
    "the number you have dialed",
    "enter the conference number",
    "hold on",
]
VOCABULARY = Letters.from_texts(TEXTS)


@pytest.fixture
def lm(tmp_path: Path) -> Path:
    write_arpa(tmp_path / "lm.arpa", estimate_ngrams(TEXTS, 3))
    return tmp_path / "lm.arpa"


def test_sentences_have_the_scores_of_kenlm(lm: Path) -> None:
    model = BeamSearch(BeamSearchConfig(lm=lm), VOCABULARY).model
    known = flashlight.Dictionary()
    for word in [*sorted(model.words), "<unk>"]:
        known.add_entry(word)
    peer = kenlm.KenLM(str(lm), known)
    for text in [*TEXTS, "the please", "hold the nonsense number you", "nonsense", ""]:
        state, context = peer.start(False), ("<s>",)
        for word in text.split():
            state, expected = peer.score(state, known.get_index(word if word in model.words else "<unk>"))
            assert model.score(context, word) == pytest.approx(expected * math.log(10), abs=1e-4)
            context = (*context, word)
        assert model.score(context, "</s>") == pytest.approx(peer.finish(state)[1] * math.log(10), abs=1e-4)


def test_texts_are_those_of_the_lexicon_decoder(lm: Path, tmp_path: Path) -> None:
    from torchaudio.models.decoder import ctc_decoder

    config = BeamSearchConfig(
        lm=lm, lm_weight=0.8, word_score=0.5, unknown_score=-1000, beam_size=200, min_symbol_log_prob=-12
    )
    search = BeamSearch(config, VOCABULARY)
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("".join(f"{word} {' '.join(word)} |\n" for word in sorted(search.model.words)))
    peer = ctc_decoder(
        lexicon=str(lexicon),
        tokens=list(VOCABULARY.symbols),
        lm=str(lm),
        beam_size=200,
        beam_threshold=100,
        lm_weight=0.8 * math.log(10),  # it takes logarithms to base 10 as they are
        word_score=0.5,
        log_add=True,
        blank_token=VOCABULARY.symbols[0],
        sil_token="|",
        unk_word="<unk>",
    )
    texts, found, expected = [], [], []
    for seed in range(20):
        texts.append(TEXTS[seed % len(TEXTS)])
        frames = torch.tensor([[label, 0] for label in VOCABULARY.encode(texts[-1])]).flatten()
        said = 4.0 * torch.nn.functional.one_hot(frames, len(VOCABULARY))
        noise = 2.5 * torch.randn(said.shape, generator=torch.Generator().manual_seed(seed))
        log_probs = (said + noise).log_softmax(dim=1)
        found.append(VOCABULARY.decode(token.symbol_id for token in search.find_path([log_probs])))
        expected.append(" ".join(peer(log_probs[None])[0][0].words))
    assert found != texts  # so much noise that both misunderstand
    assert sum(ours == theirs for ours, theirs in zip(found, expected, strict=True)) >= 19
