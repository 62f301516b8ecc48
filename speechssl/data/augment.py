"""Changes to a recording that leave what is said as it is."""

import math

from speechssl.data.audio import SAMPLE_RATE, Waveform, join, resample_blocks


def change_speed(waveform: Waveform, speed: float) -> Waveform:
    """Play a recording faster or slower, its pitch rising or falling with it (Ko et al., 2015).

    Args:
        waveform: (T,) float32.
        speed: 1.1 makes it a tenth faster, and shorter.

    Returns:
        (T / speed,) float32, rounded up.
    """
    sample_rate = SAMPLE_RATE * speed
    num_changed = math.ceil(len(waveform) * (SAMPLE_RATE / sample_rate))
    return join(resample_blocks([waveform], sample_rate, "MQ", num_changed))
