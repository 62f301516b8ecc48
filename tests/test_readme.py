"""What the README says can be done, can be done as it says."""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from speechssl.__main__ import app
from speechssl.checkpoint.native import save_model
from speechssl.checkpoint.saved_model import ModelDescription
from speechssl.commands.transcribe import app as transcribe_app
from speechssl.data.units import Letters
from speechssl.model.ctc import CTCModel
from speechssl.model.encoder import EncoderConfig
from speechssl.model.feature_encoder import FeatureEncoderConfig
from speechssl.model.transformer import TransformerConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```sh\n.*?```|(?:^ {4}.*\n)+", README, flags=re.DOTALL | re.MULTILINE)
COMMANDS = re.findall(r"^ *((?:speechssl|transcribe-audio|bash) [^#\n]*)", "\n".join(BLOCKS), flags=re.MULTILINE)
DOCUMENTS = sorted({ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("recipes/**/*.md")})


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text("utf-8")):
        assert target.startswith("https://") or (document.parent / target).exists(), target


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_exist_with_their_options(command: str) -> None:
    program, *arguments = shlex.split(command)
    if program == "bash":
        assert (ROOT / arguments[0]).is_file()
        return
    options = [argument for argument in arguments if argument.startswith("-")]
    chosen = [app, [arguments[0], "--help"]] if program == "speechssl" else [transcribe_app, ["--help"]]
    result = CliRunner().invoke(*chosen, env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0, result.output
    assert all(option in result.output for option in options), command


def test_the_readme_has_commands() -> None:
    assert {command.split()[0] for command in COMMANDS} == {"bash", "speechssl", "transcribe-audio"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with what the examples name: two models and a recording."""
    features = FeatureEncoderConfig(dims=(8, 8), kernels=(20, 16), strides=(20, 16))
    context = TransformerConfig(
        num_layers=2, model_dim=16, num_heads=2, ffn_dim=16, position_kernel=4, position_groups=2
    )
    encoder = EncoderConfig(feature_encoder=features, context=context)
    vocabulary = Letters.from_texts(["abc"])
    torch.manual_seed(0)
    model = CTCModel(encoder, len(vocabulary))
    for stage in ("pretrain", "finetune"):
        path = tmp_path / "exp" / "prompts" / stage
        path.mkdir(parents=True)
        save_model(path, ModelDescription(kind="ctc", step=1, encoder=encoder), model.state_dict(), vocabulary)
    soundfile.write(tmp_path / "meeting.wav", np.random.default_rng(0).normal(0, 0.1, (22_050, 2)), 44_100)
    return tmp_path


def test_the_python_example_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["encoded"].context.shape == (2, 50, 16)
    assert names["encoded"].frame_lengths.tolist() == [50, 25]
