"""What must hold on a GPU: `pytest -m gpu`. The same tests run on the CPU with everything else, at tiny sizes."""

import math
import tomllib
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from typer.testing import CliRunner

from speechssl.__main__ import app
from speechssl.checkpoint.native import save_model
from speechssl.checkpoint.reader import load_ctc, read_model
from speechssl.checkpoint.saved_model import ModelDescription
from speechssl.checkpoint.training_state import load_progress
from speechssl.data.batches import Example, TaskBatch
from speechssl.data.manifest import Manifest, read_manifest, read_utterance, write_manifest
from speechssl.data.units import Letters
from speechssl.model.ctc import CTCModel
from speechssl.model.encoder import EncoderConfig
from speechssl.model.feature_encoder import FeatureEncoderConfig
from speechssl.model.transformer import TransformerConfig
from speechssl.objective.objective import weighted_sum
from speechssl.scoring.error_rates import score
from speechssl.train import update
from speechssl.train.finetune_model import FinetuneModel
from speechssl.train.guard import FiniteGuard
from speechssl.train.labeled import LabeledCollate, RegularizationConfig
from speechssl.train.log import MetricSums, read_log
from speechssl.train.pretrain import PretrainConfig, PretrainModel
from speechssl.transcribe.transcriber import Transcriber

RECIPES = Path(__file__).parents[1] / "recipes"
NEEDS_GPU = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
)
CUDA = pytest.param("cuda", marks=NEEDS_GPU)
DEVICES = pytest.mark.parametrize("device", ["cpu", CUDA])
# How far gradients in bfloat16 may be from those in float32. A few frames choose another entry of the codebooks.
TOLERANCES = {"contrastive": 0.2, "masked_prediction": 0.03, "spectral_contrast": 0.03, "wav2vec": 0.03}
OBJECTIVES = pytest.mark.parametrize("objective", TOLERANCES)
RECIPE_OBJECTIVES = {"masked_prediction": []} | {
    file.stem: [file] for file in sorted((RECIPES / "prompts" / "objectives").glob("*.toml"))
}
TINY = """
[batches]
seconds = 8
min_seconds = 0.5

[encoder.feature_encoder]
dims = [16, 24, 32]
kernels = [20, 8, 8]
strides = [10, 8, 4]

[encoder.context]
num_layers = 2
model_dim = 32
num_heads = 2
ffn_dim = 48
position_kernel = 16
position_groups = 4
"""
DROPOUTS = ("input_dropout", "dropout", "attention_dropout", "activation_dropout", "layer_drop")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of a model of no size."""
    file = tmp_path_factory.mktemp("config") / "tiny.toml"
    file.write_text(TINY)
    return file


@pytest.fixture
def _no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 in convolutions too, whose factors a GPU otherwise rounds to ten bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def _same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gumbel noise of 0, which leaves the way that the gradient takes through the quantizer."""
    monkeypatch.setattr(Tensor, "exponential_", lambda tensor: tensor.fill_(1.0))


def load(config: Path, objective: str) -> PretrainConfig:
    """A configuration without dropout, and with another objective than it may have."""
    values = PretrainConfig.load([config], ["data.train=none", "data.dev=none", "data.license=none"]).to_dict()
    context = values["encoder"]["context"]
    context |= {name: 0.0 for name in DROPOUTS if name in context}
    if values["objective"]["kind"] != objective:
        values["objective"] = {"kind": objective}
    if objective == "contrastive":
        values["objective"]["target_dropout"] = 0.0
    return PretrainConfig.from_dict(values, str(config))


def noises(lengths: Sequence[float]) -> list[Example]:
    """Utterances of so many seconds, noise that grows louder and softer."""
    generator = np.random.default_rng(0)
    examples = []
    for index, seconds in enumerate(lengths):
        times = np.arange(round(16_000 * seconds)) / 16_000
        waveform = 0.1 * generator.standard_normal(len(times)) * (1.1 + np.sin(2 * np.pi * 3 * times))
        examples.append(Example(index, 0, waveform.astype(np.float32), "abc"))
    return examples


def build(config: PretrainConfig, lengths: Sequence[float]) -> tuple[PretrainModel, TaskBatch]:
    """A model in training, on the CPU, its targets fitted if it has some, and a batch for it."""
    collate = config.objective.make_collate(config.encoder.feature_encoder.geometry, 0)
    torch.manual_seed(0)
    model = PretrainModel(config.encoder, config.objective).train()
    model.objective.prepare(model.encoder, [collate(noises([4.0]))], 0)
    return model, collate(noises(lengths))


def loss_and_gradients(
    model: nn.Module, batch: TaskBatch, device: str, precision: str = "float32"
) -> tuple[float, dict[str, Tensor]]:
    """The mean loss and its gradients, on the CPU in float64."""
    model.to(device).zero_grad(set_to_none=True)
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
        losses = model(batch.to(torch.device(device)), 0)
    loss = weighted_sum(losses, batch.counts)
    assert loss.dtype == torch.float32
    loss.backward()
    gradients = {n: p.grad.double().cpu() for n, p in model.named_parameters() if p.grad is not None}
    return loss.item(), gradients


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Norm of the difference over norm of what is expected, over all parameters together."""
    assert found.keys() == expected.keys()
    whole = math.hypot(*(tensor.norm().item() for tensor in expected.values()))
    assert 0 < whole < math.inf
    return math.hypot(*((found[name] - tensor).norm().item() for name, tensor in expected.items())) / whole


@pytest.mark.usefixtures("_no_tf32", "_same_noise")
class TestPrecision:
    """Losses and gradients of every objective."""

    @DEVICES
    @OBJECTIVES
    def test_bfloat16_is_near_float32(self, tiny: Path, objective: str, device: str) -> None:
        model, batch = build(load(tiny, objective), (2.0, 1.4, 0.9))
        assert_bfloat16_is_near(model, batch, device, TOLERANCES[objective])

    @DEVICES
    def test_bfloat16_is_near_float32_in_fine_tuning(self, tiny: Path, device: str) -> None:
        model, batch = build_ctc(load(tiny, "wav2vec"), (2.0, 1.4, 0.9))
        assert_bfloat16_is_near(model, batch, device, 0.03)

    @pytest.mark.parametrize("device", [CUDA])
    @pytest.mark.parametrize(
        ("name", "objective"),
        [
            ("wav2vec2_base", "contrastive"),
            ("wav2vec2_base", "masked_prediction"),
            ("wav2vec2_large", "contrastive"),
            ("wav2vec_base", "wav2vec"),
            ("wav2vec_large", "wav2vec"),
        ],
    )
    def test_bfloat16_is_near_float32_at_the_published_sizes(self, name: str, objective: str, device: str) -> None:
        model, batch = build(load(RECIPES / "models" / f"{name}.toml", objective), (8.0, 6.5, 5.0))
        assert_bfloat16_is_near(model, batch, device, 2 * TOLERANCES[objective])

    @pytest.mark.parametrize("device", [CUDA])
    @OBJECTIVES
    def test_a_gpu_computes_what_a_cpu_does(self, tiny: Path, objective: str, device: str) -> None:
        assert_same_as_cpu(*build(load(tiny, objective), (2.0, 1.4, 0.9)), device)

    @pytest.mark.parametrize("device", [CUDA])
    def test_a_gpu_computes_what_a_cpu_does_in_fine_tuning(self, tiny: Path, device: str) -> None:
        assert_same_as_cpu(*build_ctc(load(tiny, "wav2vec"), (2.0, 1.4, 0.9)), device)


def build_ctc(config: PretrainConfig, lengths: Sequence[float]) -> tuple[FinetuneModel, TaskBatch]:
    """The same for fine-tuning: two views with masks in time and channels, one text for all."""
    encoder, vocabulary = config.encoder, Letters.from_texts(["abc"])
    regularization = RegularizationConfig(consistency=0.2)
    collate = LabeledCollate(encoder.feature_encoder.geometry, encoder.mask_dim, vocabulary, regularization, 0)
    torch.manual_seed(0)
    return FinetuneModel(CTCModel(encoder, len(vocabulary)), regularization, vocabulary.blank_id).train(), collate(
        noises(lengths)
    )


def assert_bfloat16_is_near(model: nn.Module, batch: TaskBatch, device: str, tolerance: float) -> None:
    """In loss and gradients, relative to those in float32; but not the same, or it was no bfloat16."""
    expected_loss, expected = loss_and_gradients(model, batch, device)
    loss, gradients = loss_and_gradients(model, batch, device, "bfloat16")
    found = difference(gradients, expected)
    print(f"loss {expected_loss:.5f}, in bfloat16 {loss:.5f}; gradients differ by {found:.5f}")  # noqa: T201
    assert 0 < abs(loss - expected_loss) <= 0.005 * abs(expected_loss)
    assert 0 < found <= tolerance


def assert_same_as_cpu(model: nn.Module, batch: TaskBatch, device: str) -> None:
    """In float32."""
    expected_loss, expected = loss_and_gradients(model, batch, "cpu")
    loss, gradients = loss_and_gradients(model, batch, device)
    found = difference(gradients, expected)
    print(f"loss {expected_loss:.6f}, on the GPU {loss:.6f}; gradients differ by {found:.1e}")  # noqa: T201
    assert loss == pytest.approx(expected_loss, rel=1e-4)
    assert found <= 1e-3


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few of the prompts, for training and for dev."""
    folder = tmp_path_factory.mktemp("prompts")
    for name, number in {"pretrain_train": 12, "pretrain_dev": 3, "train": 16, "dev": 4}.items():
        manifest = read_manifest(RECIPES / "prompts" / "corpus" / f"{name}.tsv")
        write_manifest(folder / f"{name}.tsv", list(manifest)[:number], RECIPES / "prompts" / "corpus")
    return folder


class TestTraining:
    """Through the command line, on real speech."""

    @DEVICES
    def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(
        self, tiny: Path, prompts: Path, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Pretraining, then fine-tuning."""
        (tmp_path / "empty.toml").touch()
        pretrained = assert_a_stop_changes_nothing(
            ["pretrain", str(tiny)],
            ["batches.max_seconds=2", "objective.mask.span_frames=4", *data(prompts, "pretrain_")],
            tmp_path,
            device,
            monkeypatch,
        )
        assert_a_stop_changes_nothing(
            ["finetune", str(tmp_path / "empty.toml")],
            [f"init={pretrained}", "feature_encoder_is_frozen=false", *data(prompts, "")],
            tmp_path,
            device,
            monkeypatch,
        )


class TestWaiting:
    """PyTorch raises an error where the host would wait for the GPU, but for logs, evaluations and checkpoints."""

    @pytest.mark.parametrize("device", [CUDA])
    @OBJECTIVES
    def test_an_update_of_pretraining_waits_for_nothing(
        self, tiny: Path, prompts: Path, tmp_path: Path, objective: str, device: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refuse_to_wait(monkeypatch)
        objective = f'objective={{kind="{objective}"}}'
        assert run(*arguments(["pretrain", str(tiny)], [objective, *data(prompts, "pretrain_")], tmp_path, device)) == 0

    @pytest.mark.parametrize(
        ("name", "device"),
        [("directpred", "cpu"), *(pytest.param(name, "cuda", marks=NEEDS_GPU) for name in RECIPE_OBJECTIVES)],
    )
    def test_every_objective_of_the_recipe_trains_in_bfloat16_and_waits_for_nothing(
        self, prompts: Path, tmp_path: Path, name: str, device: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing but the eigenvectors of DirectPred, which are computed on the host."""
        num_steps = 2
        if device == "cuda":
            num_steps = 20
            refuse_to_wait(monkeypatch)
            eigh = torch.linalg.eigh
            monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: patiently(lambda: eigh(matrix)))
        recipe = RECIPES / "prompts"
        files = [recipe / "encoder.toml", recipe / "pretrain.toml", *RECIPE_OBJECTIVES[name]]
        steps = [f"trainer.num_steps={num_steps}", 'trainer.precision="bfloat16"']
        settings = [*data(prompts, "pretrain_"), "batches.min_seconds=1"]
        command = arguments(["pretrain", *map(str, files)], settings, tmp_path, device, steps)
        assert run(*command) == 0
        log = read_log(tmp_path / "run")
        assert log[-1]["step"] == num_steps
        assert all(math.isfinite(line["loss"]) for line in log)

    @pytest.mark.parametrize("device", [CUDA])
    def test_an_update_of_fine_tuning_waits_for_nothing_but_the_loss(
        self, tiny: Path, prompts: Path, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """PyTorch's own CTC loss copies its lengths to the GPU and waits until they are there."""
        refuse_to_wait(monkeypatch)
        loss = F.ctc_loss
        monkeypatch.setattr(F, "ctc_loss", lambda *values, **options: patiently(lambda: loss(*values, **options)))
        settings = ["feature_encoder_is_frozen=false", *data(prompts, "")]
        assert run(*arguments(["finetune", str(tiny)], settings, tmp_path, device)) == 0


def arguments(
    command: Sequence[str], settings: Sequence[str], folder: Path, device: str, others: Sequence[str] = ()
) -> list[str]:
    """A training of six updates that logs, evaluates and saves after three, unless others are asked for."""
    trainer = ["num_steps=6", "microbatches=2", "log_steps=3", "evaluate_steps=3", f"device={device}"]
    found = [*command, "--output", str(folder / "run")]
    usual = ("data.license=CC", "data.num_workers=2", "batches.seconds=8", "batches.num_buckets=2")
    for setting in (*settings, *usual, *(f"trainer.{setting}" for setting in trainer), *others):
        found += ["--set", setting]
    return found


def patiently(function: Callable[[], Any]) -> Any:
    """Call what may wait for the GPU."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default")
    try:
        return function()
    finally:
        torch.cuda.set_sync_debug_mode(before)


def refuse_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second update on; what follows an update (logs, evaluations, checkpoints) may wait."""
    watch, seed = FiniteGuard.watch_update, update._seed_noise

    def seed_noise(run_seed: int, number: int) -> None:
        seed(run_seed, number)
        if number >= 2:
            torch.cuda.set_sync_debug_mode("error")

    def watch_update(guard: FiniteGuard, step: int, norm: Tensor) -> None:
        watch(guard, step, norm)
        torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(update, "_seed_noise", seed_noise)
    monkeypatch.setattr(FiniteGuard, "watch_update", watch_update)


def data(folder: Path, prefix: str) -> list[str]:
    """Settings that name the manifests."""
    return [f"data.{split}={folder / f'{prefix}{split}.tsv'}" for split in ("train", "dev")]


def assert_a_stop_changes_nothing(
    command: Sequence[str], settings: Sequence[str], folder: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Train twice, once with an interruption: no difference on a CPU, and on a GPU, which adds in an order of its own
    each time, hardly more than between two trainings without one.

    Returns:
        A run without an interruption.
    """
    trainer = ["num_steps=8", "microbatches=2", "checkpoint_steps=2", "evaluate_steps=4", "log_steps=1"]
    others = [f"device={device}", *trainer]
    arguments = list(command)
    for setting in (
        *settings,
        *(f"trainer.{other}" for other in others),
        *("data.license=CC", "data.num_workers=0", "batches.seconds=8", "batches.num_buckets=2"),
    ):
        arguments += ["--set", setting]
    whole, again, stopped, first = (folder / command[0] / name for name in ("whole", "again", "stopped", "first"))
    for undisturbed in (whole, again):
        assert run(*arguments, "--output", str(undisturbed)) == 0
    with monkeypatch.context() as patch:
        patch.setattr(MetricSums, "add", interrupt_at(11))  # a microbatch of the sixth update
        assert run(*arguments, "--output", str(stopped)) == 130
    assert load_progress(stopped).step == 4
    assert run(*arguments, "--output", str(stopped)) == 0
    # What training began with, for the scale of what it changed: one update of no size.
    still = ["--set", "trainer.num_steps=1", "--set", "optimizer.learning_rate=1e-30"]
    assert run(*arguments, *still, "--output", str(first)) == 0

    change = difference(weights_of(first), weights_of(whole))
    usual, found = (difference(weights_of(path), weights_of(whole)) / change for path in (again, stopped))
    losses = [[line["loss"] for line in read_log(path) if line["split"] == "train"] for path in (whole, stopped)]
    print(f"{command[0]}: weights differ by {found:.1e} of what they learned, {usual:.1e} undisturbed")  # noqa: T201
    assert len(losses[0]) == 8
    if device == "cpu":
        assert found == usual == 0
        assert losses[1] == losses[0]
    assert found <= 3 * usual + 0.01
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    return whole


def weights_of(path: Path) -> dict[str, Tensor]:
    """Without the biases of keys, which add the same to all scores of a query: their gradients are rounding alone."""
    return {
        name: weight for name, weight in read_model(path / "latest").weights.items() if not name.endswith("key.bias")
    }


def run(*arguments: str) -> int:
    """The exit status of the command."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code in (0, 130), result.stderr
    return result.exit_code


def interrupt_at(number: int) -> Callable[..., None]:
    """What stops the training in the place of adding losses for the so manieth time."""
    count, add = 0, MetricSums.add

    def add_or_stop(sums: MetricSums, *arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == number:
            raise KeyboardInterrupt
        add(sums, *arguments)

    return add_or_stop


ENCODERS = {
    "group": EncoderConfig.from_dict(tomllib.loads(TINY)["encoder"], "tiny"),
    "layer": EncoderConfig(
        feature_encoder=FeatureEncoderConfig(
            dims=(16, 24, 32), kernels=(20, 8, 8), strides=(10, 8, 4), norm="layer", bias=True
        ),
        context=TransformerConfig(
            num_layers=2, model_dim=32, num_heads=2, ffn_dim=48, norm_first=True, position_kernel=16, position_groups=4
        ),
        normalize_waveforms=True,
    ),
    "base": EncoderConfig(),
}
CASES = pytest.mark.parametrize(
    ("encoder", "device"),
    [("group", "cpu"), ("layer", "cpu"), *(pytest.param(name, "cuda", marks=NEEDS_GPU) for name in ENCODERS)],
)


@pytest.fixture(scope="module")
def speech() -> Manifest:
    """Prompts of many lengths."""
    return read_manifest(RECIPES / "prompts" / "corpus" / "dev.tsv")


@pytest.fixture(scope="module")
def save_random(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Save a model that says many letters, at random but sure of them."""

    @cache
    def save(encoder: str) -> Path:
        folder = tmp_path_factory.mktemp(encoder)
        vocabulary = Letters.from_texts(["abcdefghijklmnopqrstuvwxyz'"])
        torch.manual_seed(0)
        model = CTCModel(ENCODERS[encoder], len(vocabulary))
        nn.init.normal_(model.head.weight)
        description = ModelDescription(kind="ctc", step=1, encoder=ENCODERS[encoder])
        save_model(folder, description, model.state_dict(), vocabulary)
        return folder

    return save


class TestTranscription:
    """In float32, and with the rounded factors in convolutions that PyTorch takes on a GPU unless told otherwise."""

    @CASES
    @pytest.mark.usefixtures("_no_tf32")
    def test_a_gpu_says_what_a_cpu_says(
        self, save_random: Callable[[str], Path], speech: Manifest, encoder: str, device: str
    ) -> None:
        assert rate_of_other_letters(save_random(encoder), speech, device) <= 0.002

    @pytest.mark.parametrize("device", [CUDA])
    @pytest.mark.parametrize("encoder", ENCODERS)
    def test_a_gpu_says_nearly_that_as_it_is(
        self, save_random: Callable[[str], Path], speech: Manifest, encoder: str, device: str
    ) -> None:
        assert rate_of_other_letters(save_random(encoder), speech, device) <= 0.03

    @CASES
    @pytest.mark.usefixtures("_no_tf32")
    def test_a_batch_is_its_utterances(
        self, save_random: Callable[[str], Path], speech: Manifest, encoder: str, device: str
    ) -> None:
        model = load_ctc(save_random(encoder), device).model
        waveforms = [torch.from_numpy(read_utterance(utterance)) for utterance in list(speech)[:6]]
        lengths = torch.tensor([len(waveform) for waveform in waveforms])
        assert lengths.max() > 1.5 * lengths.min()
        with torch.inference_mode():
            together = model(pad_sequence(waveforms, batch_first=True).to(device), lengths.to(device))
            for row, length, waveform in zip(
                together.log_probs, together.frame_lengths.tolist(), waveforms, strict=True
            ):
                alone = model(waveform[None].to(device)).log_probs[0]
                assert len(alone) == length
                assert torch.allclose(row[:length].exp(), alone.exp(), atol=1e-3)


def rate_of_other_letters(folder: Path, speech: Manifest, device: str) -> float:
    """The share of letters that a device hears otherwise than the CPU does."""
    utterances = list(speech)[:24]
    sources = [partial(read_utterance, utterance) for utterance in utterances]
    expected, found = (
        [
            str(transcript)
            for transcript in Transcriber.load(folder, where, precision="float32").transcribe_many(sources)
        ]
        for where in ("cpu", device)
    )
    assert len("".join(expected)) > 10 * len(utterances), "hears too little to be compared"
    rate = score(expected, found).characters.rate
    print(f"{100 * rate:.3f} % of the letters differ")  # noqa: T201
    return rate
