"""Everything but forced alignment works where torchaudio cannot be imported, as beside a torch that is newer.

And so it does in a container whose home and installation cannot be written, where librosa, which compiles when it is
imported, finds no place for what it compiled.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile

CONFIG = """
[data]
train = "train.tsv"
dev = "train.tsv"
license = "CC0"
num_workers = 0
[batches]
seconds = 4
min_seconds = 0.5
[encoder.feature_encoder]
dims = [8, 8]
kernels = [20, 16]
strides = [10, 16]
[encoder.context]
num_layers = 1
model_dim = 16
num_heads = 2
ffn_dim = 16
position_kernel = 4
position_groups = 2
[trainer]
num_steps = 2
microbatches = 1
device = "cpu"
"""
OBJECTIVE = """
[objective]
kind = "masked_prediction"
spectra = "log_mel"
num_clusters = 4
"""
COMMANDS = """
import sys
sys.modules["torchaudio"] = sys.modules["librosa"] = sys.modules["numba"] = None
from speechssl.__main__ import app
from speechssl.commands.transcribe import app as transcribe_app

for line in (
    "manifest corpus -o train.tsv",
    "check train.tsv",
    "pretrain pretrain.toml -o pretrained",
    "finetune finetune.toml -o finetuned --set init='pretrained'",
    "evaluate finetuned train.tsv --device cpu",
    "extract pretrained corpus -o features.npz --device cpu",
):
    app(line.split(), standalone_mode=False)
line = "--model finetuned --device cpu corpus --split-at-pauses --format srt --output-dir out"
transcribe_app(line.split(), standalone_mode=False)
"""


def test_every_command_that_aligns_nothing_works(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for number in range(4):
        noise = np.random.default_rng(number).uniform(-0.5, 0.5, 16_000)
        soundfile.write(tmp_path / "corpus" / f"{number}.wav", noise, 16_000)
        (tmp_path / "corpus" / f"{number}.txt").write_text("ab")
    (tmp_path / "pretrain.toml").write_text(CONFIG + OBJECTIVE)
    encoder = CONFIG.index("[encoder.feature_encoder]")
    (tmp_path / "finetune.toml").write_text(CONFIG[:encoder] + CONFIG[CONFIG.index("[trainer]") :])
    closed = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "PYTHONPYCACHEPREFIX"), "/proc/closed")
    environment = {**os.environ, **closed}
    result = subprocess.run(
        [sys.executable, "-c", COMMANDS], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "out").glob("*.srt"))) == 4
    assert (tmp_path / "features.npz").exists()
