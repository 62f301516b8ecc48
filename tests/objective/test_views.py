from collections.abc import Callable

import numpy as np
import pytest
import torch

from speechssl.data.batches import Example, collate_audio
from speechssl.objective.views import Views, ViewsConfig, apply_views, draw_views, equalizer_taps

MakeExamples = Callable[..., list[Example]]
DEFAULT = ViewsConfig()


def plain(num_rows: int, num_samples: int) -> Views:
    """Views that change nothing."""
    taps = torch.from_numpy(equalizer_taps(np.zeros(8))).float()
    return Views(torch.zeros(num_rows, 2), taps.expand(num_rows, -1), torch.zeros(num_rows, num_samples))


def draw(examples: list[Example], config: ViewsConfig = DEFAULT, purposes: tuple[int, ...] = (1, 2)) -> Views:
    return draw_views(examples, max(len(e.waveform) for e in examples), config, seed=0, purposes=purposes)


def test_without_changes_a_view_is_the_recording() -> None:
    waveforms = torch.randn(2, 1000)
    torch.testing.assert_close(apply_views(plain(2, 1000), waveforms, None), waveforms, rtol=0, atol=1e-5)


def test_level_drifts_evenly_from_one_gain_to_the_other() -> None:
    views = plain(1, 1001)
    views.gains_db[:] = torch.tensor([6.0, -6.0])
    found = apply_views(views, torch.ones(1, 1001), None)[0]
    wanted = 10 ** (np.array([6.0, 3.0, 0.0, -3.0]) / 20)
    np.testing.assert_allclose(found[[0, 250, 500, 750]], wanted, rtol=0.01)


def test_noise_is_as_far_below_the_recording_as_drawn(make_examples: MakeExamples) -> None:
    examples = make_examples((60_000, 30_000))
    config = ViewsConfig(drift_db=0.0, equalizer_db=0.0, noise_db=(20.0, 20.0))
    audio = collate_audio(examples)
    views = apply_views(draw(examples, config, (1,)), audio.waveforms, audio.lengths)
    for row, example in zip(views, examples, strict=True):
        speech = torch.from_numpy(example.waveform)
        noise = row[: len(speech)] - speech
        assert 20 * torch.log10(speech.norm() / noise.norm()) == pytest.approx(20, abs=0.3)


def test_equalizer_has_the_gains_of_its_bands_and_no_delay() -> None:
    bands = np.array([3.0, -6.0, 0.0, 6.0, 2.0, -4.0, 0.0, 5.0])
    taps = equalizer_taps(bands)
    np.testing.assert_allclose(taps, taps[::-1], atol=1e-12)
    mel = np.linspace(0, np.log10(1 + 8000 / 700), 8)
    hertz = 700 * (10**mel - 1)
    response = np.abs(np.fft.rfft(taps, 16_000))
    found = 20 * np.log10(response[np.rint(hertz).astype(int)])
    np.testing.assert_allclose(found[3:], bands[3:], atol=1.0)  # low bands are narrower than 16 ms can tell


def test_words_stay_where_they_are() -> None:
    """A click stays at its sample in every view."""
    examples = [Example(index, 0, np.zeros(1000, np.float32), None) for index in range(20)]
    for example in examples:
        example.waveform[400] = 1.0
    audio = collate_audio(examples)
    found = apply_views(draw(examples, purposes=(1,)), audio.waveforms, None)
    assert (found.abs().argmax(dim=1) == 400).all()


def test_depend_on_utterance_epoch_and_purpose_alone(make_examples: MakeExamples) -> None:
    examples = make_examples()
    whole, alone = draw(examples), draw(examples[2:3])
    for together, single in ((whole.gains_db, alone.gains_db), (whole.taps, alone.taps)):
        assert torch.equal(together[[2, 8]], single)
        assert len(together.unique(dim=0)) == 12
    assert torch.equal(whole.noise[[2, 8], :185], alone.noise)
    assert not whole.noise[2, 185:].any()
    later = [Example(example.index, 1, example.waveform, None) for example in examples]
    assert not torch.equal(draw(later).gains_db, whole.gains_db)


def test_padding_changes_nothing(make_examples: MakeExamples) -> None:
    examples = make_examples()
    audio = collate_audio(examples)
    together = apply_views(draw(examples, purposes=(1,)), audio.waveforms, audio.lengths)
    for row, example in zip(together, examples, strict=True):
        alone = apply_views(draw([example], purposes=(1,)), torch.from_numpy(example.waveform)[None], None)[0]
        torch.testing.assert_close(row[: len(alone)], alone, rtol=1e-4, atol=1e-5)
        assert not row[len(alone) :].any()


def test_silence_stays_silence() -> None:
    examples = [Example(0, 0, np.zeros(500, np.float32), None)]
    assert not apply_views(draw(examples, purposes=(1,)), torch.zeros(1, 500), None).any()
