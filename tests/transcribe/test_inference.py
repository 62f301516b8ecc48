"""One batching for all: which pieces go together, what comes back, and what happens where memory or numbers run out."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from speechssl.data.audio import Waveform
from speechssl.errors import AudioError
from speechssl.frames import FrameGeometry
from speechssl.transcribe.inference import Inference, Outputs
from speechssl.transcribe.pauses import cut_at_pauses
from speechssl.transcribe.windows import cut_windows

RATE = 16_000
GEOMETRY = FrameGeometry((160,), (160,))
cut = partial(cut_windows, geometry=GEOMETRY, window_seconds=1.0, context_seconds=0.2)


class Model:
    """The level of each frame, and its number in the piece; remembers the shapes that it was given."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, int]] = []

    def __call__(self, waveforms: Tensor, lengths: Tensor | None) -> list[Tensor]:
        self.shapes.append(tuple(waveforms.shape))
        frames = waveforms.unfold(1, 160, 160).mean(dim=2)
        return [frames[:, :, None], torch.arange(frames.shape[1]).expand(frames.shape)]


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def inference(model: Model) -> Inference:
    return Inference(model, GEOMETRY, torch.device("cpu"))


def ramp(seconds: float, first: float = 0.0) -> Waveform:
    """Frames that rise by one."""
    return np.repeat(first + np.arange(round(seconds * 100), dtype=np.float32), 160)


def give(wave: Waveform) -> Callable[[], Waveform]:
    return lambda: wave


def joined(outputs: Outputs) -> list[float]:
    return [float(value) for _, [levels, _] in outputs for value in levels[:, 0]]


def test_a_batch_may_be_as_large_as_its_bound_and_no_larger(inference: Inference, model: Model) -> None:
    sources = [(str(number), give(ramp(0.5))) for number in range(6)]
    for seconds, rows in ((1.0, [2, 2, 2]), (0.999, [1] * 6), (1.499, [2, 2, 2]), (1.5, [3, 3])):
        model.shapes.clear()
        assert [len(joined(outputs)) for outputs in inference.run(sources, cut, seconds)] == [50] * 6
        assert [shape[0] for shape in model.shapes] == rows


def test_windows_of_a_recording_share_batches_and_come_back_in_order(inference: Inference, model: Model) -> None:
    waves = [ramp(0.3), ramp(4.15), np.zeros(100, np.float32), ramp(0.97, 1000)]
    sources = [(str(number), give(wave)) for number, wave in enumerate(waves)]
    found = []
    for outputs in inference.run(sources, cut, 10.0):
        found.append(joined(outputs))
        assert outputs.num_samples == len(waves[len(found) - 1])
    assert found == [wave[::160][: len(wave) // 160].tolist() for wave in waves]
    assert max(rows for rows, _ in model.shapes) > 5


def test_short_pieces_of_several_recordings_share_batches(inference: Inference, model: Model) -> None:
    def recording() -> Waveform:
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, RATE // 2).astype(np.float32)
        return np.concatenate([noise, np.zeros(2 * RATE, np.float32)] * 2)

    sources = [(str(number), recording) for number in range(5)]
    starts = [[piece.start for piece, _ in outputs] for outputs in inference.run(sources, cut_at_pauses)]
    assert [len(found) for found in starts] == [2] * 5
    assert sum(rows for rows, _ in model.shapes) == 10
    assert len(model.shapes) <= 2


def test_a_recording_comes_back_before_it_ends(inference: Inference) -> None:
    num_read = 0

    def blocks() -> Iterator[Waveform]:
        nonlocal num_read
        for _ in range(1000):
            num_read += 1
            yield np.zeros(4000, np.float32)

    results = inference.run([("long", blocks)], cut, 1.0)
    parts = iter(next(results))
    for number in range(1, 20):
        next(parts)
        assert num_read < 3 * (number + 12)  # of a quarter of a second; two pools of four windows are read ahead


def test_a_result_waits_for_no_batch_behind_it(inference: Inference, model: Model) -> None:
    results = inference.run([(str(n), give(ramp(seconds))) for n, seconds in enumerate((0.9, 0.5, 0.2))], cut)
    for number, outputs in enumerate(results, start=1):
        assert joined(outputs)
        assert len(model.shapes) == number


def test_what_is_not_taken_of_a_recording_is_passed_over(inference: Inference) -> None:
    sources = [("a", give(ramp(7))), ("b", give(ramp(3))), ("c", give(ramp(0.02, 5)))]
    results = inference.run(sources, cut, 2.0)
    next(iter(next(results)))
    next(results)
    assert joined(next(results)) == [5.0, 6.0]
    assert next(results, None) is None


def test_a_recording_that_breaks_off_gives_what_came_before(inference: Inference) -> None:
    def breaks() -> Iterator[Waveform]:
        yield ramp(2)
        raise AudioError("b: damaged")

    first, second, third = [], [], []
    all_outputs = inference.run([("a", give(ramp(0.1))), ("b", breaks), ("c", give(ramp(0.1)))], cut)
    first += joined(next(all_outputs))
    with pytest.raises(AudioError, match=r"^b: damaged$"):
        second += [piece for piece, _ in next(all_outputs)]
    third += joined(next(all_outputs))
    assert len(first) == len(third) == 10


def test_without_memory_a_batch_is_halved_until_it_fits(inference: Inference, model: Model) -> None:
    def fail(waveforms: Tensor, lengths: Tensor | None) -> list[Tensor]:
        outputs = model(waveforms, lengths)
        return outputs if waveforms.shape[0] <= 2 and waveforms.shape[1] <= 8000 else [torch.empty(2**55)]

    inference.model = fail
    sources = [(f"{number}.wav", give(ramp(0.5))) for number in range(8)] + [("long.wav", give(ramp(0.9)))]
    found: list[object] = []
    for outputs in inference.run(sources, cut):
        try:
            found.append(len(joined(outputs)))
        except AudioError as error:
            found.append(str(error))
    assert found == [50] * 8 + ["long.wav: not enough memory on cpu for 1 s of audio at once"]
    assert [rows for rows, _ in model.shapes] == [1, 8, 4, 2, 2, 4, 2, 2]


def test_what_is_no_number_is_an_error_of_its_recording(inference: Inference) -> None:
    waves = [ramp(0.5), np.full(8000, np.nan, np.float32), ramp(0.5)]
    found: list[object] = []
    for outputs in inference.run([(f"{n}.wav", give(wave)) for n, wave in enumerate(waves)], cut):
        try:
            found.append(len(joined(outputs)))
        except AudioError as error:
            found.append(str(error))
    assert found == [50, "1.wav: expected numbers from the model in float32, found NaN", 50]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_the_model_runs_in_the_precision_asked_for(precision: str) -> None:
    weight = torch.eye(160)
    seen = []

    def multiply(waveforms: Tensor, lengths: Tensor | None) -> list[Tensor]:
        seen.append(torch.is_inference_mode_enabled())
        product = waveforms.unfold(1, 160, 160) @ weight
        seen.append(product.dtype)
        return [product]

    inference = Inference(multiply, GEOMETRY, torch.device("cpu"), precision)  # type: ignore[arg-type]
    [output] = inference.run_alone("a", np.resize(np.float32([1 + 2**-12, -1]), 320))
    assert seen == [True, getattr(torch, precision)]
    assert output.dtype == torch.float32
    assert (output.max().item() == 1 + 2**-12) == (precision == "float32")
    assert inference.describe() == f"cpu x {torch.get_num_threads()}, {precision}"
