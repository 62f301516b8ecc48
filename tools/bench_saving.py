"""Measure for how long a checkpoint keeps a training waiting, and for how long a thread writes it beside the training.

    python tools/bench_saving.py [CONFIG.toml ...] [--saves 3]

The model is that of `speechssl pretrain CONFIG.toml`, wav2vec 2.0 base without one, on the CPU with an optimizer whose
state is full. Before there was a thread, the training waited for the sum.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from model_table import NO_DATA

from speechssl.checkpoint.native import write_weights
from speechssl.checkpoint.training_state import Progress
from speechssl.objective.teacher import split_weights
from speechssl.train.optimizer import make_optimizer
from speechssl.train.parallel import Ranks, training_tensors
from speechssl.train.pretrain import PretrainConfig, PretrainModel, read_target_source
from speechssl.train.saver import Saver


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", type=Path, metavar="CONFIG.toml")
    parser.add_argument("--saves", type=int, default=3)
    options = parser.parse_args()
    config = PretrainConfig.load(options.configs, NO_DATA)
    model = PretrainModel(config.encoder, config.objective, read_target_source(config))
    optimizer = make_optimizer(config.optimizer, model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()

    waited, written = [], []
    with tempfile.TemporaryDirectory() as folder:
        ranks = Ranks(0, 1, torch.device("cpu"))
        with Saver(Path(folder), 1, ranks, is_sharded=False) as saver:
            for step in range(1, options.saves + 1):
                start = time.monotonic()
                weights, tensors = split_weights(model)[0], training_tensors(optimizer, model)
                saver.save(Progress(step), weights, tensors, write_weights)
                waited.append(time.monotonic() - start)
                saver.finish()
                written.append(time.monotonic() - start - waited[-1])
        size = sum(file.stat().st_size for file in Path(folder, "latest").iterdir())
    seconds = map(statistics.median, (waited, written))
    print("{:.2f} GB: the training waits {:.2f} s, the thread writes {:.2f} s".format(size / 1e9, *seconds))


if __name__ == "__main__":
    main()
