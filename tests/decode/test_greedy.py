import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from speechssl.decode.greedy import PathToken, greedy_path


def spans(*symbols: int, blank_id: int = 0) -> list[tuple[int, int, int]]:
    probabilities = torch.full((len(symbols), 4), 0.1)
    probabilities[torch.arange(len(symbols)), torch.tensor(symbols, dtype=torch.int64)] = 0.7
    tokens = greedy_path(probabilities.log().split(2), blank_id)
    return [(token.symbol_id, token.first_frame, token.last_frame) for token in tokens]


def test_repeats_are_joined_and_blanks_dropped() -> None:
    assert spans(0, 1, 1, 0, 2, 3, 3, 3, 0, 0) == [(1, 1, 2), (2, 4, 4), (3, 5, 7)]
    assert spans(3, 1, 1, 3, 2, 0, 0, 0, 3, blank_id=3) == [(1, 1, 2), (2, 4, 4), (0, 5, 7)]


def test_blank_separates_equal_symbols() -> None:
    assert spans(1, 1, 0, 1) == [(1, 0, 1), (1, 3, 3)]


def test_symbols_at_both_ends() -> None:
    assert spans(2, 0, 0, 3) == [(2, 0, 0), (3, 3, 3)]
    assert spans(2, 2, 2) == [(2, 0, 2)]


def test_nothing_but_blanks() -> None:
    assert spans(0, 0, 0) == []
    assert greedy_path([], 0) == []


def test_log_prob_is_the_mean_over_the_run() -> None:
    probabilities = torch.tensor([[0.2, 0.8], [0.4, 0.6], [0.9, 0.1], [0.3, 0.7]])
    assert greedy_path([probabilities.log()], 0) == [
        PathToken(1, 0, 1, pytest.approx((math.log(0.8) + math.log(0.6)) / 2)),
        PathToken(1, 3, 3, pytest.approx(math.log(0.7))),
    ]


def test_greedy_decoding_needs_no_torchaudio(model_folder: Path) -> None:
    program = (
        "import sys; sys.modules['torchaudio'] = None\n"
        "import numpy as np, speechssl, speechssl.evaluate.tune, speechssl.train.finetune\n"
        "noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000)\n"
        "print(len(speechssl.Transcriber.load(sys.argv[1], 'cpu').transcribe(noise, 16_000).text))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(model_folder)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 0
