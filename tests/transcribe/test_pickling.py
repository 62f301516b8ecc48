"""Models and transcribers are sent to other processes and copied, and say the same there."""

import copy
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from speechssl.checkpoint.native import save_model
from speechssl.checkpoint.reader import load_encoder, read_model
from speechssl.checkpoint.saved_model import ModelDescription
from speechssl.data.units import Letters
from speechssl.decode.settings import BeamSearchConfig
from speechssl.model.causal import CausalConfig
from speechssl.model.causal_transformer import CausalTransformerConfig
from speechssl.model.ctc import CTCModel
from speechssl.model.encoder import EncoderConfig
from speechssl.model.feature_encoder import FeatureEncoderConfig
from speechssl.transcribe.decoding import make_beam_search
from speechssl.transcribe.transcriber import Transcriber

NOISE = (0.1 * np.random.default_rng(0).standard_normal(16_000)).astype(np.float32)
COPIES = [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))]


@pytest.mark.parametrize("make_copy", COPIES)
def test_an_encoder(model_folder: Path, make_copy) -> None:
    encoder = load_encoder(model_folder, "cpu")
    waveforms, lengths = torch.from_numpy(NOISE)[None], torch.tensor([len(NOISE)])
    expected = encoder.encode(waveforms, lengths).context
    encoder.context.position.conv.bias.requires_grad_(False)
    found = make_copy(encoder)
    torch.testing.assert_close(found.encode(waveforms, lengths).context, expected, rtol=0, atol=0)
    assert {name for name, parameter in found.named_parameters() if not parameter.requires_grad} == {
        "context.position.conv.bias"
    }
    assert [module.training for module in found.modules()] == [False] * len(list(encoder.modules()))
    with torch.no_grad():
        found.context.position.conv.bias += 1
    torch.testing.assert_close(encoder.encode(waveforms, lengths).context, expected, rtol=0, atol=0)


@pytest.mark.parametrize("make_copy", COPIES)
def test_a_model_in_training(model_folder: Path, make_copy) -> None:
    model = read_model(model_folder).ctc("cpu").model.train()
    model(torch.from_numpy(NOISE)[None]).log_probs.sum().backward()
    found = make_copy(model)
    assert found.training
    assert found.encoder.context.position.training
    for tensor, other in zip(found.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(tensor, other, rtol=0, atol=0)


CAUSAL = [
    CausalConfig(model_dim=8, kernels=(2, 3)),
    CausalTransformerConfig(num_layers=1, model_dim=8, num_heads=2, ffn_dim=8, position_kernel=4, position_groups=2),
]


@pytest.mark.parametrize("make_copy", COPIES)
@pytest.mark.parametrize("context", CAUSAL, ids=lambda context: context.kind)
def test_a_causal_model(tmp_path: Path, context: CausalConfig | CausalTransformerConfig, make_copy) -> None:
    stem = FeatureEncoderConfig(dims=(8,), kernels=(400,), strides=(320,), norm="layer")
    encoder = EncoderConfig(feature_encoder=stem, context=context)
    torch.manual_seed(0)
    model, units = CTCModel(encoder, 4), Letters.from_texts(["ab"])
    save_model(tmp_path, ModelDescription(kind="ctc", step=1, encoder=encoder), model.state_dict(), units)
    transcriber = Transcriber.load(tmp_path, "cpu")
    assert make_copy(transcriber).transcribe(NOISE, 16_000) == transcriber.transcribe(NOISE, 16_000)


@pytest.mark.parametrize("make_copy", COPIES)
def test_a_transcriber_with_a_language_model(model_folder: Path, tmp_path: Path, make_copy) -> None:
    (tmp_path / "lm.arpa").write_text(
        "\\data\\\nngram 1=4\n\n\\1-grams:\n-9 <unk>\n-1 </s>\n-9 <s>\n-0.5 ab\n\n\\end\\\n"
    )
    checkpoint = read_model(model_folder).ctc("cpu")
    search = make_beam_search(BeamSearchConfig(lm=tmp_path / "lm.arpa"), checkpoint)
    transcriber = Transcriber(checkpoint, search)
    (tmp_path / "lm.arpa").unlink()
    assert make_copy(transcriber).transcribe(NOISE, 16_000) == transcriber.transcribe(NOISE, 16_000)


def test_another_process(model_folder: Path) -> None:
    transcriber = Transcriber.load(model_folder, "cpu")
    expected = transcriber.transcribe(NOISE, 16_000)
    assert expected.text
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(transcriber.transcribe, (NOISE, 16_000))
    assert found.text == expected.text
    assert found.words == expected.words
