import pytest
import torch

from speechssl.checkpoint.transformers_names import from_transformers, to_transformers
from speechssl.errors import CheckpointError
from speechssl.model.ctc import CTCModel
from speechssl.model.encoder import EncoderConfig
from speechssl.objective.contrastive import ContrastiveConfig
from speechssl.train.pretrain import PretrainModel


@pytest.mark.parametrize("norm_first", [False, True])
def test_names_go_there_and_back(norm_first: bool) -> None:
    config = EncoderConfig().to_dict()
    config["context"] |= {"num_layers": 12, "model_dim": 16, "num_heads": 2, "ffn_dim": 4, "norm_first": norm_first}
    encoder = EncoderConfig.from_dict(config, "test")
    for model in (CTCModel(encoder, 5), PretrainModel(encoder, ContrastiveConfig())):
        ours = model.state_dict()
        theirs = to_transformers(ours)
        assert len(theirs) == len(ours)
        assert list(from_transformers(theirs)) == list(ours)
    assert "wav2vec2.encoder.layers.11.attention.q_proj.weight" in theirs


def test_other_weights_are_refused() -> None:
    for rename in (to_transformers, from_transformers):
        with pytest.raises(CheckpointError, match=r"expected a weight of wav2vec2, found encoder\.adapter\.1\.bias$"):
            rename({"encoder.adapter.1.bias": torch.zeros(1)})
