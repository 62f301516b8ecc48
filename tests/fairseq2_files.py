"""fairseq2's names for a model of torchaudio, and tokenizers."""

import re
from collections.abc import Sequence

from torch import Tensor, nn

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
PIECES = (*SPECIAL, "\u2581", *"etaonihsrdlu|\u0436")


def to_fairseq2(peer: nn.Module, kind: str) -> dict[str, Tensor]:
    """The weights of torchaudio's ``base`` or ``large`` design by fairseq2's names."""
    norm = "layer_norm" if kind == "large" else "group_norm"
    rules = {
        r"feature_extractor\.conv_layers\.(\d+)\.conv": r"encoder_frontend.feature_extractor.layers.\1.conv",
        r"feature_extractor\.conv_layers\.(\d+)\.layer_norm": rf"encoder_frontend.feature_extractor.layers.\1.{norm}",
        r"encoder\.feature_projection\.layer_norm": "encoder_frontend.post_extract_layer_norm",
        r"encoder\.feature_projection\.projection": "encoder_frontend.model_dim_proj",
        r"encoder\.transformer\.pos_conv_embed\.conv": "encoder_frontend.pos_encoder.conv",
        r"parametrizations\.weight\.original0": "weight_g",
        r"parametrizations\.weight\.original1": "weight_v",
        r"encoder\.transformer\.layer_norm": "encoder.layer_norm" if kind == "large" else "encoder_frontend.layer_norm",
        r"encoder\.transformer\.layers": "encoder.layers",
        r"attention\.([qkv])_proj": r"self_attn.\1_proj",
        r"attention\.out_proj": "self_attn.output_proj",
        r"(layers\.\d+)\.layer_norm\.(?=weight$|bias$)": r"\1.self_attn_layer_norm.",
        r"feed_forward\.intermediate_dense": "ffn.inner_proj",
        r"feed_forward\.output_dense": "ffn.output_proj",
        r"final_layer_norm": "ffn_layer_norm",
        r"aux": "final_proj",
    }
    weights = {}
    for name, tensor in peer.state_dict().items():
        for pattern, theirs in rules.items():
            if "feature_extractor" not in name or "feature_extractor" in pattern:
                name = re.sub(pattern, theirs, name)
        weights[name] = tensor
    return weights


def tokenizer(pieces: Sequence[str], special: Sequence[str] = SPECIAL) -> bytes:
    """A model of SentencePiece with these pieces: text, score and, where it is not ordinary, kind."""
    content = b""
    for piece in pieces:
        text = piece.encode()
        kind = {"<unk>": b"\x18\x02"}.get(piece, b"\x18\x03") if piece in special else b""
        message = b"\x0a" + bytes([len(text)]) + text + b"\x15\x00\x00\x80\xbf" + kind
        content += b"\x0a" + bytes([len(message)]) + message
    return content + b"\x12\x04\x0a\x02ab" + b"\x18\x96\x01"  # what trained it, and a number
