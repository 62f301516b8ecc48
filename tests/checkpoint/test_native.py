"""Models on disk."""

import io
import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import speechssl
from speechssl.checkpoint.native import save_model
from speechssl.checkpoint.reader import load_ctc, load_encoder, read_model
from speechssl.checkpoint.saved_model import ModelDescription, TrainingData
from speechssl.data.units import Letters
from speechssl.errors import CheckpointError
from speechssl.files import replaced_folder
from speechssl.model.ctc import CTCModel
from speechssl.model.device import resolve_device
from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.model.feature_encoder import FeatureEncoderConfig
from speechssl.model.transformer import TransformerConfig

VOCABULARY = Letters.from_texts(["привет", "hello"])
CONFIG = EncoderConfig(
    feature_encoder=FeatureEncoderConfig(dims=(8, 8), kernels=(20, 16), strides=(10, 16)),
    context=TransformerConfig(
        num_layers=2, model_dim=16, num_heads=2, ffn_dim=16, position_kernel=4, position_groups=2, dropout=0.3
    ),
)
DATA = (
    TrainingData(stage="pretrain", license="CC-BY-4.0: five languages", hours=0.5, labeled=False),
    TrainingData(stage="finetune", license="CC0: «тест»", hours=0.1, labeled=True),
)
CTC = ModelDescription(kind="ctc", step=7, encoder=CONFIG, training_data=DATA)
PRETRAINED = ModelDescription(kind="pretrained", step=3, encoder=CONFIG, objective={"a": [1]}, training_data=DATA[:1])


@pytest.fixture(scope="module")
def ctc() -> CTCModel:
    torch.manual_seed(1)
    return CTCModel(CONFIG, len(VOCABULARY)).eval()


@pytest.fixture
def folder(tmp_path: Path, ctc: CTCModel) -> Path:
    """A saved CTC model."""
    return save_ctc(tmp_path / "model", ctc)


def save_ctc(folder: Path, ctc: CTCModel, step: int = 7) -> Path:
    folder.mkdir(parents=True)
    save_model(folder, CTC.model_copy(update={"step": step}), ctc.state_dict(), VOCABULARY)
    return folder


def save_pretrained(folder: Path, encoder: SpeechEncoder) -> Path:
    folder.mkdir(parents=True)
    weights = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    save_model(folder, PRETRAINED, weights | {"objective.quantizer.codebooks": torch.ones(3)})
    return folder


def test_a_ctc_model_comes_back_as_it_was(folder: Path, ctc: CTCModel) -> None:
    checkpoint = load_ctc(folder, "cpu")
    assert checkpoint.description == CTC
    assert checkpoint.vocabulary == VOCABULARY
    assert not any(module.training for module in checkpoint.model.modules())
    waveforms, lengths = torch.randn(2, 2_000), torch.tensor([2_000, 1_500])
    found, expected = checkpoint.model(waveforms, lengths), ctc(waveforms, lengths)
    assert torch.equal(found.log_probs, expected.log_probs)
    assert found.frame_lengths.tolist() == [12, 9]


def test_the_tensors_say_that_they_are_pytorchs(folder: Path) -> None:
    with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_names_of_earlier_versions_are_read(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text("utf-8"))
    for data in values["training_data"]:
        data["licence"], data["labelled"] = data.pop("license"), data.pop("labeled")
    (folder / "config.json").write_text(json.dumps(values), "utf-8")
    safetensors.torch.save_file({"objective.centres": torch.ones(2)}, folder / "model.safetensors")
    saved = read_model(folder)
    assert saved.description == CTC
    assert list(saved.weights) == ["objective.centers"]


def test_whoever_may_read_a_new_file_may_read_a_model(folder: Path) -> None:
    (folder / "new").touch()
    modes = {path.name: stat.filemode(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == dict.fromkeys(("config.json", "model.safetensors", "vocab.json", "new"), modes["new"])


@pytest.mark.parametrize("layer", [None, 0, 1])
def test_the_encoder_of_either_kind_comes_back_as_it_was(
    folder: Path, tmp_path: Path, ctc: CTCModel, layer: int | None
) -> None:
    waveforms, lengths = torch.randn(2, 2_000), torch.tensor([2_000, 1_500])
    expected = ctc.encoder.encode(waveforms, lengths, layer)
    for path in (folder, save_pretrained(tmp_path / "pretrained", ctc.encoder)):
        encoder = speechssl.load_encoder(str(path))
        assert not any(module.training for module in encoder.modules())
        found = encoder.encode(waveforms, lengths, layer)
        assert torch.equal(found.context, expected.context)
        assert found.frame_lengths.tolist() == [12, 9]


def test_saving_changes_neither_the_model_nor_its_weights_on_the_way(tmp_path: Path) -> None:
    class Odd(torch.nn.Module):
        """A weight that does not lie in one piece, and one that needs a gradient."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.arange(6.0).view(2, 3).t())

    model = Odd()
    save_model(tmp_path, PRETRAINED, model.state_dict())
    assert read_model(tmp_path).weights["weight"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert model.weight.requires_grad
    assert not model.weight.is_contiguous()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_config_json_names_the_licenses_of_all_training_data(folder: Path) -> None:
    text = (folder / "config.json").read_text("utf-8")
    assert "CC0: «тест»" in text  # as a person reads it
    values = json.loads(text)
    assert [(data["stage"], data["license"], data["labeled"]) for data in values["training_data"]] == [
        ("pretrain", "CC-BY-4.0: five languages", False),
        ("finetune", "CC0: «тест»", True),
    ]
    assert values["speechssl_version"] == speechssl.__version__
    assert read_model(folder).description == CTC


def test_a_pretrained_model_is_no_ctc_model(tmp_path: Path, ctc: CTCModel) -> None:
    path = save_pretrained(tmp_path / "pretrained", ctc.encoder)
    with pytest.raises(
        CheckpointError, match=re.escape(f"{path}: expected a fine-tuned (ctc) model, found a pretrain")
    ):
        load_ctc(path)
    assert read_model(path).description == PRETRAINED


def test_paths_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: no such model folder$"):
        load_encoder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name, expected in {"empty": r"a model folder with config\.json", "file": "a complete PyTorch file"}.items():
        with pytest.raises(CheckpointError, match=f"{name}: expected {expected}"):
            load_ctc(tmp_path / name)


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=re.escape(str(folder / name))):
        load_ctc(folder)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_cut_off_weights_are_refused(folder: Path, share: float) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: expected a complete safetensors file: .") as caught:
        load_ctc(folder)
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit_are_named_with_both_shapes(folder: Path, ctc: CTCModel) -> None:
    file = folder / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in ctc.state_dict().items()}
    for changed, message in (
        ({"head.bias": torch.zeros(3)}, rf"head.bias: expected \({len(VOCABULARY)},\), found \(3,\)"),
        ({"head.bias": None}, rf"head.bias: expected \({len(VOCABULARY)},\), found none"),
        ({"head.scale": torch.zeros(2)}, r"head.scale: expected no such weight, found \(2,\)"),
    ):
        tensors = {name: tensor for name, tensor in (weights | changed).items() if tensor is not None}
        safetensors.torch.save_file(tensors, file)
        with pytest.raises(CheckpointError, match=rf"model\.safetensors: {message}"):
            load_ctc(folder)
        load_encoder(folder)  # which is whole


def test_a_vocabulary_of_another_model_is_refused(folder: Path) -> None:
    Letters.from_texts(["other"]).save(folder / "vocab.json")
    with pytest.raises(CheckpointError, match=r"head\.bias: expected \(7,\), found \(12,\)"):
        load_ctc(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": "whisper"}', "expected a model_type of wav2vec2, hubert, .*, found 'whisper'$"),
        ('["speechssl"]', 'expected "format": "speechssl"$'),
        ("", "expected JSON"),
        ("{", "expected JSON"),
        ("\xff", "expected JSON"),
        ('{"format": "speechssl", "format_version": 2, "kind": "ctc", "step": 1, "encoder": {}}', "format_version"),
        ('{"format": "speechssl", "kind": "ctc", "step": 1, "encoder": {}, "color": 1}', "color: unknown setting"),
        ('{"format": "speechssl", "kind": "tts", "step": 1, "encoder": {}}', "kind"),
        ('{"format": "speechssl", "kind": "ctc", "step": 1}', "encoder: this setting is required"),
    ],
)
def test_a_config_of_something_else_is_refused(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}") as caught:
        load_ctc(folder)
    assert "\n" not in str(caught.value)


def test_a_run_stands_for_its_best_model_before_its_latest(tmp_path: Path, ctc: CTCModel) -> None:
    run = tmp_path / "run"
    for step in (1, 2):
        save_ctc(run / "checkpoints" / f"step_{step}", ctc, step)
    (run / "latest").symlink_to("checkpoints/step_2")
    assert read_model(run).weights_file.parent == run / "latest"
    assert load_ctc(run).description.step == 2
    (run / "best").symlink_to("checkpoints/step_1")
    assert read_model(run).weights_file.parent == run / "best"
    assert load_ctc(run).description.step == 1
    save_ctc(tmp_path / "copy", ctc, 3)
    (tmp_path / "copy" / "best").symlink_to(run / "best")
    assert load_ctc(tmp_path / "copy").description.step == 3, "a model folder stands for itself"


def test_replaced_folder_is_old_or_new(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "model"
    with replaced_folder(folder) as temporary:
        (temporary / "file").write_text("old")
        assert not folder.exists()
    with replaced_folder(folder) as temporary:
        (temporary / "file").write_text("new")
        (temporary / "other").write_text("new")
        assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("file", "old")]
    assert sorted((path.name, path.read_text()) for path in folder.iterdir()) == [("file", "new"), ("other", "new")]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(folder: Path) -> None:
        with replaced_folder(folder) as temporary:
            (temporary / "half").write_text("new")
            raise error

    folder = tmp_path / "model"
    with pytest.raises(error):
        fail(folder)
    assert list(tmp_path.iterdir()) == []
    folder.mkdir()
    (folder / "file").write_text("old")
    with pytest.raises(error):
        fail(folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "file"]


def test_what_a_kill_left_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "half").write_text("")
    with replaced_folder(tmp_path / "model") as temporary:
        (temporary / "file").write_text("new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "model"]


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    for device in ("teapot", "cuda:99", "meta"):
        with pytest.raises(CheckpointError, match=f"device {device}: not available") as caught:
            resolve_device(device)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "vocab.json", "model.safetensors"])
def test_what_may_not_be_read_is_not_called_missing(
    model_folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = io.open

    def refuse(file: Any, *arguments: Any, **options: Any) -> Any:
        if Path(file) == model_folder / name:
            raise PermissionError(13, "Permission denied", str(file))
        return original(file, *arguments, **options)

    monkeypatch.setattr(io, "open", refuse)  # root may read everything
    with pytest.raises(CheckpointError, match=rf"{name}: Permission denied$"):
        read_model(model_folder).read_weights()
