"""WavLM's attention: the buckets of distances, and what padding and layer drop leave of it."""

import torch

from speechssl.model.wavlm import WavLMConfig, bucket_distances

PUBLISHED = {  # of distances, key minus query, with 320 buckets up to 800 frames
    0: 0,
    1: 161,
    -1: 1,
    79: 239,
    -79: 79,
    80: 240,
    -80: 80,
    81: 240,
    100: 247,
    -100: 87,
    200: 271,
    400: 295,
    799: 319,
    800: 319,
    1500: 319,
    -1500: 159,
}
CONFIG = WavLMConfig(
    num_layers=2, model_dim=16, num_heads=2, ffn_dim=16, position_kernel=4, position_groups=2, num_buckets=16
)


def test_buckets_are_the_published_ones() -> None:
    found = bucket_distances(torch.tensor(list(PUBLISHED)), 320, 800)
    assert found.tolist() == list(PUBLISHED.values())


def test_the_bias_of_a_pair_is_that_of_its_distance() -> None:
    context = CONFIG.build(8)
    biases, _ = context.attention_bias(torch.zeros(1, 30, 16), None)
    weights = context.distance_bias.weight
    for query, key in ((0, 0), (0, 29), (29, 0), (7, 12)):
        bucket = bucket_distances(torch.tensor(key - query), 16, 800)
        assert torch.equal(biases[:, query, key], weights[bucket])


def test_layers_that_are_dropped_leave_the_bias_to_the_others() -> None:
    """In other toolkits the first layer owns the bias, so it cannot be dropped."""
    torch.manual_seed(0)
    context = CONFIG.model_copy(update={"layer_drop": 0.5}).build(8).train()
    for _ in range(8):
        context.zero_grad()
        context(torch.randn(1, 30, 8)).square().sum().backward()
        assert all(parameter.grad is not None for parameter in context.parameters())
