"""The published models: their files load, have the stated sizes, and give a loss."""

from pathlib import Path

import pytest
import torch

from speechssl.data.manifest import read_manifest, read_utterance
from speechssl.model.encoder import normalize_waveforms
from speechssl.model.feature_encoder import FeatureEncoder, FeatureEncoderConfig
from speechssl.train.pretrain import PretrainConfig, PretrainModel

RECIPES = Path(__file__).parents[2] / "recipes"
DATA = ["data.train=none", "data.dev=none", "data.license=none"]
MODELS = {
    "byol_base": (94_371_712, 199_254_528),  # half of it the moving average
    "data2vec_base": (93_164_288, 182_711_552),  # with the teacher
    "dinosr_base": (93_164_288, 183_695_872),
    "spidr_base": (93_164_288, 183_695_872),
    "hubert_base": (94_371_712, 94_594_176),
    "hubert_base_second": (94_371_712, 94_696_576),
    "hubert_large": (315_435_136, 316_606_336),
    "apc": (17_073_280, 17_114_320),
    "best_rq_base": (94_371_712, 100_671_360),
    "wav2vec2_base": (94_371_712, 95_044_608),
    "wav2vec2_large": (315_438_720, 317_390_592),
    "wav2vec_base": (12_344_832, 15_491_072),
    "wav2vec_large": (29_390_848, 32_537_088),
    "tera_base": (30_580_864, 30_703_904),
    "wavlm_base": (94_381_936, 94_604_400),
    "xlsr_1b": (962_497_408, 965_514_752),
    "xlsr_2b": (2_159_259_648, 2_162_932_352),
}


BEHIND = {"hubert_base_second": "hubert_base", "xlsr_1b": "wav2vec2_large", "xlsr_2b": "wav2vec2_large"}
"""Files that state what differs from another, which is given before them."""


def load(name: str) -> PretrainConfig:
    names = [BEHIND[name], name] if name in BEHIND else [name]
    needs_model = name in ("hubert_base_second", "hubert_large")
    overrides = [*DATA, *(["objective.targets.model=none"] if needs_model else [])]
    return PretrainConfig.load([RECIPES / "models" / f"{one}.toml" for one in names], overrides)


def num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_every_file_is_here() -> None:
    assert {file.stem for file in RECIPES.glob("models/*.toml")} == MODELS.keys()


@pytest.mark.parametrize("name", MODELS)
def test_sizes_are_as_stated(name: str) -> None:
    config = load(name)
    with torch.device("meta"):
        model = PretrainModel(config.encoder, config.objective)
    assert (num_parameters(model.encoder), num_parameters(model)) == MODELS[name]


def test_xlsr_1b_has_the_encoder_of_which_omnilingual_asr_publishes_counts() -> None:
    """The counts are of models with a CTC head, without the mask's embedding; the head has as many symbols in both."""
    counts = {"wav2vec2_large": 325_494_996, "xlsr_1b": 975_065_300}
    num_symbols = set()
    for name, count in counts.items():
        width = load(name).encoder.context.model_dim
        symbols, rest = divmod(count - (MODELS[name][0] - width), width + 1)
        assert rest == 0
        num_symbols.add(symbols)
    assert num_symbols == {9812}


def test_xlsr_has_16_heads() -> None:
    widths = {name: load(name).encoder.context for name in ("xlsr_1b", "xlsr_2b")}
    assert [(one.num_heads, one.model_dim // one.num_heads) for one in widths.values()] == [(16, 80), (16, 120)]


def test_base_is_the_default_but_for_its_masks_and_normalization() -> None:
    stated = PretrainConfig.load([RECIPES / "models" / "wav2vec2_base.toml"], DATA)
    changes = ["objective.mask.equal_counts=true", "encoder.normalize_waveforms=1e-8"]
    assert stated == PretrainConfig.load([], [*DATA, *changes])


@pytest.mark.parametrize("name", MODELS)
def test_every_model_hears_any_level_and_offset(name: str) -> None:
    assert load(name).encoder.normalize_waveforms == 1e-8


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*/encoder*.toml")), ids=lambda file: file.stem)
def test_every_encoder_hears_any_level_and_offset(file: Path) -> None:
    assert PretrainConfig.load([file], DATA).encoder.normalize_waveforms == 1e-8


def test_hubert_base_has_the_encoder_of_wav2vec2_base() -> None:
    first, second = load("hubert_base"), load("hubert_base_second")
    assert first.encoder == second.encoder == load("wav2vec2_base").encoder
    assert (first.objective.target_files, first.trainer.num_steps, second.trainer.num_steps) == (None, 250_000, 400_000)
    assert [round(each.schedule.warmup * each.trainer.num_steps) for each in (first, second)] == [32_000, 32_000]
    assert first.optimizer == second.optimizer


@pytest.mark.slow  # two cores: 15 s
@torch.no_grad()
def test_normalization_before_group_norm_changes_next_to_nothing_but_at_low_levels() -> None:
    """What wav2vec2_base.toml says of it."""
    [utterance, *_] = read_manifest(RECIPES / "prompts" / "corpus" / "test.tsv")
    speech = torch.from_numpy(read_utterance(utterance))[None]
    torch.manual_seed(0)
    encoder = FeatureEncoder(FeatureEncoderConfig())

    def change(waveforms: torch.Tensor) -> float:
        expected = encoder(speech)
        return float((encoder(waveforms) - expected).norm() / expected.norm())

    assert change(normalize_waveforms(speech, None, 1e-8)) < 0.01
    assert change(0.1 * speech) > 0.1
    assert change(0.01 * speech) > 0.5


def test_wav2vec_large_sees_as_much_as_published() -> None:
    config = PretrainConfig.load([RECIPES / "models" / "wav2vec_large.toml"], DATA)
    geometry, context = config.encoder.feature_encoder.geometry, config.encoder.context
    frames = 1 + sum(kernel - 1 for kernel in context.kernels)
    assert (geometry.hop_samples, geometry.receptive_field_samples, frames) == (160, 465, 79)
    assert pytest.approx(geometry.num_samples(frames) / 16_000, abs=0.005) == 0.81
