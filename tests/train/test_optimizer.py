import torch
from torch import nn

from speechssl.train.optimizer import OptimizerConfig, make_optimizer


def test_adamw_is_as_configured_and_decays_every_parameter() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    config = OptimizerConfig(learning_rate=0.5, betas=(0.8, 0.9), epsilon=1e-3, weight_decay=0.2)
    optimizer = make_optimizer(config, model.parameters())
    defaults = {name: optimizer.defaults[name] for name in ("lr", "betas", "eps", "weight_decay")}
    assert defaults == {"lr": 0.5, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.2}
    for parameter in model.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter in model.parameters():
        assert torch.allclose(parameter, torch.tensor(1 - 0.5 * 0.2))
