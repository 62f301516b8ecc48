import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from speechssl.model.quantizer import Quantizer, QuantizerConfig

GROUPS, SIZE = 2, 5
PLANTED = QuantizerConfig(num_codebooks=GROUPS, codebook_size=SIZE, code_dim=6)


def make_quantizer(config: QuantizerConfig = PLANTED, input_dim: int = 8) -> Quantizer:
    torch.manual_seed(0)
    quantizer = Quantizer(config, input_dim)
    torch.nn.init.normal_(quantizer.projection.bias)
    return quantizer.eval()


def planted_quantizer() -> Quantizer:
    """Takes G x V scores as its input and uses them as logits."""
    quantizer = make_quantizer(input_dim=GROUPS * SIZE)
    with torch.no_grad():
        quantizer.projection.weight.copy_(torch.eye(GROUPS * SIZE))
        quantizer.projection.bias.zero_()
    return quantizer


def planted_frames(*entries: tuple[int, int], score: float = 50.0) -> Tensor:
    """Frames that choose these entries of the two codebooks."""
    return torch.stack(
        [score * F.one_hot(torch.tensor(chosen), SIZE).flatten().float() for chosen in entries],
    )


class TestEvaluation:
    def test_takes_the_likeliest_entries(self) -> None:
        quantizer, frames = make_quantizer(), torch.randn(50, 8)
        quantized = quantizer(frames, torch.ones(50), 2.0)
        logits = quantizer.projection(frames).view(50, GROUPS, SIZE)
        for number, (code, scores) in enumerate(zip(quantized.codes, logits, strict=True)):
            first, second = scores.argmax(dim=1).tolist()
            expected = torch.cat((quantizer.codebooks[0, first], quantizer.codebooks[1, second]))
            assert torch.equal(code, expected), number
        assert torch.equal(quantizer(frames, torch.ones(50), 0.1).codes, quantized.codes)

    def test_codebooks_and_their_gradient(self) -> None:
        quantizer = planted_quantizer()
        quantizer(planted_frames((1, 0), (1, 4)), torch.ones(2), 1.0).codes.sum().backward()
        used = torch.zeros(GROUPS, SIZE)
        used[0, 1], used[1, 0], used[1, 4] = 2, 1, 1
        assert torch.equal(quantizer.codebooks.grad, used[:, :, None].expand(-1, -1, 3))

    def test_every_combination_has_its_own_id(self) -> None:
        entries = [(first, second) for first in range(SIZE) for second in range(SIZE)]
        frames = planted_frames(*entries, *entries)
        ids = planted_quantizer()(frames, torch.ones(len(frames)), 1.0).ids
        assert ids.dtype == torch.int64
        assert len(set(ids[: SIZE**2].tolist())) == SIZE**2
        assert torch.equal(ids[: SIZE**2], ids[SIZE**2 :])


class TestTraining:
    def test_is_gumbel_softmax_with_a_hard_choice(self) -> None:
        quantizer = make_quantizer().train()
        frames, weights = torch.randn(40, 8, requires_grad=True), torch.randn(40, 6)
        for temperature in (2.0, 0.5):
            torch.manual_seed(3)
            codes = quantizer(frames, torch.ones(40), temperature).codes
            inputs = (frames, *quantizer.parameters())
            gradients = torch.autograd.grad((codes * weights).sum(), inputs)
            torch.manual_seed(3)
            logits = quantizer.projection(frames).view(40, GROUPS, SIZE)
            chosen = F.gumbel_softmax(logits, tau=temperature, hard=True)
            expected = torch.einsum("ngv,gve->nge", chosen, quantizer.codebooks).flatten(1)
            torch.testing.assert_close(codes, expected)
            for found, wanted in zip(gradients, torch.autograd.grad((expected * weights).sum(), inputs), strict=True):
                assert wanted.any()
                torch.testing.assert_close(found, wanted)

    def test_codes_are_entries_and_ids_tell_them_apart(self) -> None:
        quantizer = make_quantizer().train()
        quantized = quantizer(torch.randn(300, 8), torch.ones(300), 2.0)
        entries = quantized.codes.view(300, GROUPS, 1, 3) == quantizer.codebooks
        chosen = entries.all(dim=3)
        assert chosen.sum(dim=2).eq(1).all(), "each code is exactly one entry of each codebook"
        same_code = (chosen[:, None] == chosen[None]).flatten(2).all(dim=2)
        assert torch.equal(same_code, quantized.ids[:, None] == quantized.ids)

    def test_choices_follow_the_distribution_at_any_temperature(self) -> None:
        quantizer, num_frames = planted_quantizer().train(), 20_000
        logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, 0.5], [0.0, 0.0, 3.0, 0.0, 0.0]])
        frames = logits.flatten().expand(num_frames, -1)
        probabilities = logits.softmax(dim=1)
        for temperature in (2.0, 0.1):
            ids = quantizer(frames, torch.ones(num_frames), temperature).ids
            for group, entries in enumerate((ids // SIZE, ids % SIZE)):
                expected = probabilities[group] * num_frames
                statistic = ((entries.bincount(minlength=SIZE) - expected).square() / expected).sum()
                assert statistic < 18.5, "chi-square with 4 degrees of freedom, p = 0.001"

    def test_an_exponential_draw_of_zero_poisons_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.Tensor, "exponential_", lambda self: self.zero_())
        quantizer = make_quantizer().train()
        codes = quantizer(torch.randn(4, 8), torch.ones(4), 0.5).codes
        codes.sum().backward()
        assert codes.isfinite().all()
        assert quantizer.projection.weight.grad.isfinite().all()


class TestPerplexity:
    def test_of_uniform_use_is_the_number_of_entries(self) -> None:
        frames = planted_frames(*((entry, entry) for entry in range(SIZE)))
        quantized = planted_quantizer()(frames, torch.ones(SIZE), 1.0)
        assert quantized.code_perplexity.item() == pytest.approx(GROUPS * SIZE, rel=1e-5)
        assert quantized.prob_perplexity.item() == pytest.approx(GROUPS * SIZE, rel=1e-5)

    def test_of_one_entry_is_one_for_each_codebook(self) -> None:
        quantized = planted_quantizer()(planted_frames(*[(3, 1)] * 9), torch.ones(9), 1.0)
        assert quantized.code_perplexity.item() == pytest.approx(GROUPS, rel=1e-5)
        assert quantized.prob_perplexity.item() == pytest.approx(GROUPS, rel=1e-5)

    def test_of_flat_logits(self) -> None:
        """Every entry is as likely, yet one is chosen throughout: the two must be told apart."""
        quantized = planted_quantizer()(torch.zeros(9, GROUPS * SIZE), torch.ones(9), 1.0)
        assert quantized.code_perplexity.item() == pytest.approx(GROUPS, rel=1e-5)
        assert quantized.prob_perplexity.item() == pytest.approx(GROUPS * SIZE, rel=1e-5)

    def test_codebooks_are_added_up(self) -> None:
        quantized = planted_quantizer()(planted_frames((0, 2), (1, 2), (3, 2), (4, 2)), torch.ones(4), 1.0)
        assert quantized.code_perplexity.item() == pytest.approx(4 + 1, rel=1e-5)
        assert quantized.prob_perplexity.item() == pytest.approx(4 + 1, rel=1e-5)

    def test_is_the_exponential_of_the_entropy_of_the_mean(self) -> None:
        quantizer, frames = make_quantizer(), torch.randn(30, 8)
        mean = quantizer.projection(frames).view(30, GROUPS, SIZE).softmax(dim=2).mean(dim=0)
        expected = sum(torch.distributions.Categorical(row).entropy().exp() for row in mean)
        assert quantizer(frames, torch.ones(30), 1.0).prob_perplexity.item() == pytest.approx(expected.item(), rel=1e-4)

    def test_filling_does_not_count(self) -> None:
        quantizer, frames = make_quantizer(), torch.randn(30, 8)
        weights = (torch.arange(30) < 11).float()
        filled, alone = quantizer(frames, weights, 1.0), quantizer(frames[:11], torch.ones(11), 1.0)
        assert filled.code_perplexity.item() == pytest.approx(alone.code_perplexity.item(), rel=1e-5)
        assert filled.prob_perplexity.item() == pytest.approx(alone.prob_perplexity.item(), rel=1e-5)

    def test_is_without_noise_and_temperature(self) -> None:
        quantizer, frames = make_quantizer(), torch.randn(30, 8)
        quiet = quantizer(frames, torch.ones(30), 1.0)
        noisy = quantizer.train()(frames, torch.ones(30), 0.1)
        assert torch.equal(noisy.prob_perplexity, quiet.prob_perplexity)
        assert torch.equal(noisy.code_perplexity, quiet.code_perplexity)
        assert not torch.equal(noisy.ids, quiet.ids)

    def test_gradient_goes_to_the_logits_of_one_kind_alone(self) -> None:
        quantizer = make_quantizer().train()
        quantized = quantizer(torch.randn(30, 8), torch.ones(30), 1.0)
        assert not quantized.code_perplexity.requires_grad
        quantized.prob_perplexity.backward()
        assert quantizer.projection.weight.grad.any()
        assert quantizer.codebooks.grad is None or not quantizer.codebooks.grad.any()

    def test_near_entries_are_told_apart_under_autocast(self) -> None:
        quantizer, frames = make_quantizer(QuantizerConfig(), 64), torch.randn(500, 64)
        expected = quantizer(frames, torch.ones(500), 1.0)
        with torch.autocast("cpu", torch.bfloat16):
            found = quantizer(frames, torch.ones(500), 1.0)
        assert torch.equal(found.ids, expected.ids)

    def test_is_float32_under_autocast(self) -> None:
        config = QuantizerConfig(num_codebooks=2, codebook_size=100, code_dim=8)
        torch.manual_seed(0)
        quantizer = Quantizer(config, 200).eval()
        with torch.no_grad():
            quantizer.projection.weight.copy_(torch.eye(200))  # exact in bfloat16
        frames, weights = torch.randn(500, 200).bfloat16().float(), torch.ones(500)
        expected = quantizer(frames, weights, 1.0)
        with torch.autocast("cpu", torch.bfloat16):
            found = quantizer(frames, weights, 1.0)
        assert torch.equal(found.codes, expected.codes)
        assert torch.equal(found.code_perplexity, expected.code_perplexity)
        assert torch.equal(found.prob_perplexity, expected.prob_perplexity)


class TestTemperature:
    def test_falls_from_start_to_end(self) -> None:
        config = QuantizerConfig()
        assert config.temperature(0) == 2.0
        assert config.temperature(1) == pytest.approx(2 * 0.999995)
        assert config.temperature(100_000) == pytest.approx(2 * 0.999995**100_000)
        assert config.temperature(277_258) == pytest.approx(0.5, rel=1e-6)
        assert config.temperature(277_258) > 0.5
        assert config.temperature(277_259) == 0.5
        assert config.temperature(10**7) == 0.5

    def test_floor_of_the_large_model(self) -> None:
        config = QuantizerConfig(temperature_end=0.1)
        assert config.temperature(599_144) > 0.1
        assert config.temperature(599_145) == 0.1


def test_initialization() -> None:
    torch.manual_seed(0)
    quantizer = Quantizer(QuantizerConfig(), 64)
    assert quantizer.projection.weight.shape == (640, 64)
    assert quantizer.projection.weight.mean().item() == pytest.approx(0, abs=0.02)
    assert quantizer.projection.weight.std().item() == pytest.approx(1, abs=0.02)
    assert not quantizer.projection.bias.any()
    assert quantizer.codebooks.shape == (2, 320, 128)
    assert quantizer.codebooks.min() >= 0
    assert quantizer.codebooks.max() < 1
    assert quantizer.codebooks.mean().item() == pytest.approx(0.5, abs=0.01)
    assert quantizer.codebooks.std().item() == pytest.approx(12**-0.5, abs=0.01)


def test_codes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValidationError, match="code_dim must be a multiple of num_codebooks, found 255"):
        QuantizerConfig(code_dim=255)
