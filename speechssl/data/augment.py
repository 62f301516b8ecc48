"""Changes to a recording that leave what is said as it is."""

import numpy as np

from speechssl.data.audio import SAMPLE_RATE, Waveform


def change_speed(waveform: Waveform, speed: float) -> Waveform:
    """Play a recording faster or slower, its pitch rising or falling with it (Ko et al., 2015).

    Args:
        waveform: (T,) float32.
        speed: 1.1 makes it a tenth faster, and shorter.

    Returns:
        (T / speed,) float32.
    """
    if speed == 1:
        return waveform
    import librosa  # slow to import

    changed = librosa.resample(waveform, orig_sr=SAMPLE_RATE * speed, target_sr=SAMPLE_RATE, res_type="soxr_mq")
    return np.asarray(changed, np.float32)
