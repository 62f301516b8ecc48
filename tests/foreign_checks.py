"""How what a file gives is compared with the peer inside it."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from speechssl.checkpoint.reader import load_ctc, load_encoder


def greedy_text(log_probs: Tensor, symbols: Sequence[str]) -> str:
    """What (S, V) scores say: repeats joined, then the first symbol, the blank, and longer ones dropped."""
    best = log_probs.argmax(dim=1).unique_consecutive().tolist()
    said = "".join(symbols[symbol] for symbol in best if len(symbols[symbol]) == 1 and symbol > 0)
    return " ".join(said.split())


def layers_of(peer: nn.Module, waveforms: Tensor) -> Sequence[Tensor]:
    """The output of every layer of a model of torchaudio or transformers, or of one that gives them as they are."""
    if hasattr(peer, "extract_features"):
        return peer.extract_features(waveforms)[0]  # type: ignore[no-any-return]
    if hasattr(peer, "config"):
        return peer(waveforms, output_hidden_states=True).hidden_states[1:]  # type: ignore[no-any-return]
    return peer(waveforms)  # type: ignore[no-any-return]


def assert_same_features(path: Path, peer: nn.Module, waveforms: Tensor, heard: Tensor) -> None:
    """All layers are those of the peer, and so is the context after a large model's last norm.

    Args:
        path: The file.
        peer: The model inside it.
        waveforms: (B, T), for us.
        heard: The same for the peer, which does not normalize.
    """
    encoder = load_encoder(path, "cpu")
    with torch.no_grad():
        layers = layers_of(peer, heard)
        last = peer.encoder.transformer.layer_norm(layers[-1]) if encoder.config.context.norm_first else layers[-1]
        for number, layer in enumerate(layers, 1):
            found = encoder.encode(waveforms, layer=number).context
            assert (found - layer).norm() <= 1e-5 * layer.norm(), f"layer {number}"
        found = encoder.encode(waveforms).context
        assert (found - last).norm() <= 1e-5 * last.norm()
        assert 0.1 < found.std() < 10


def assert_same_scores(path: Path, peer: nn.Module, waveforms: Tensor, heard: Tensor) -> None:
    """The log probabilities are those of torchaudio's model; the arguments are those of `assert_same_features`."""
    with torch.no_grad():
        expected = peer(heard)[0].log_softmax(dim=2)
        found = load_ctc(path, "cpu").model(waveforms).log_probs
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert found.std() > 0.1
