"""A model of the first wav2vec with fairseq's names, and its settings there."""

from typing import Any

from torch import Tensor, nn

CONVOLUTIONS = [(12, 10, 5), (16, 4, 2), (24, 1, 1)]
AGGREGATOR = [(20, 2, 1), (20, 3, 1), (20, 4, 1)]


class Reference(nn.Module):
    """Schneider et al., 2019, with the names of fairseq's modules."""

    def __init__(self, has_residual: bool, aggregator: list[tuple[int, int, int]] = AGGREGATOR) -> None:
        super().__init__()
        self.has_residual = has_residual
        dims = [1, *(dim for dim, _, _ in CONVOLUTIONS)]
        self.feature_extractor = nn.ModuleDict({"conv_layers": nn.ModuleList()})
        for in_dim, (dim, kernel, stride) in zip(dims, CONVOLUTIONS, strict=False):
            conv = nn.Conv1d(in_dim, dim, kernel, stride, bias=False)
            block = nn.Sequential(conv, nn.Dropout(0.0), nn.GroupNorm(1, dim), nn.ReLU())
            self.feature_extractor["conv_layers"].append(block)
        self.feature_aggregator = nn.ModuleDict({"conv_layers": nn.Sequential(), "residual_proj": nn.ModuleList()})
        in_dim = dims[-1]
        for dim, kernel, _ in aggregator:
            conv = nn.Conv1d(in_dim, dim, kernel)
            pad = nn.ReplicationPad1d((kernel - 1, 0))
            block = nn.Sequential(pad, conv, nn.Dropout(0.0), nn.GroupNorm(1, dim), nn.ReLU())
            self.feature_aggregator["conv_layers"].append(block)
            projection = nn.Conv1d(in_dim, dim, 1, bias=False) if has_residual and in_dim != dim else None
            self.feature_aggregator["residual_proj"].append(projection)
            in_dim = dim
        self.wav2vec_predictions = nn.ModuleDict({"project_to_steps": nn.ConvTranspose2d(in_dim, 24, (1, 4))})

    def forward(self, waveforms: Tensor) -> list[Tensor]:
        x = waveforms[:, None]
        for block in self.feature_extractor["conv_layers"]:
            x = block(x)
        x = (x.abs() + 1).log()
        layers = []
        parts = zip(*(self.feature_aggregator[name] for name in ("conv_layers", "residual_proj")), strict=True)
        for block, projection in parts:
            y = block(x)
            if self.has_residual:
                y = (y + (x if projection is None else projection(x))) * 0.5**0.5
            x = y
            layers.append(x.transpose(1, 2))
        return layers


def wav2vec_settings(**changes: Any) -> dict[str, Any]:
    return {
        "conv_feature_layers": str(CONVOLUTIONS),
        "conv_aggregator_layers": str(AGGREGATOR),
        "aggregator": "cnn",
        "activation": "relu",
        "vq_type": "none",
        "skip_connections_agg": True,
        "log_compression": True,
        "residual_scale": 0.5,
        "prediction_steps": 4,
        **changes,
    }
