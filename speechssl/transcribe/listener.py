"""How a model hears a stream: by a window that moves along, or exactly, if it is causal."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from speechssl.data.audio import SAMPLE_RATE, Waveform
from speechssl.model.ctc import CTCModel
from speechssl.model.past import Past
from speechssl.transcribe.inference import Inference, without_noise
from speechssl.transcribe.running_norm import RunningNorm

STEP_SECONDS = 0.5
LEFT_SECONDS = 6.0
"""Audio that the model sees before what it decides on."""
RIGHT_SECONDS = 1.0
"""Audio that it sees after that."""


@dataclass(frozen=True)
class Listener:
    """What tells the symbols of a stream.

    Attributes:
        score: Computes the log probabilities of a window's frames, (S, V).
        past: What the model, which sees nothing of the future, keeps of the past. Then a window holds what the frames
            since the last one see, and nothing else. None is a model that needs to see the past again, and some of the
            future.
        normalize: What samples go through, each once and in order, before they are in a window; None is nothing.
    """

    score: Callable[[Waveform], Tensor]
    past: Past | None = None
    normalize: Callable[[Waveform], Waveform] | None = None

    @property
    def is_exact(self) -> bool:
        """Whether the log probabilities are those of the whole."""
        return self.past is not None

    @property
    def left_seconds(self) -> float:
        """Audio that a window has before what is to be decided."""
        return 0.0 if self.is_exact else LEFT_SECONDS

    @property
    def right_seconds(self) -> float:
        """Audio that is to follow what is decided."""
        return 0.0 if self.is_exact else RIGHT_SECONDS

    @property
    def step_seconds(self) -> float:
        """New audio from one result to the next: if the listener is exact, whatever completes a frame."""
        return 1 / SAMPLE_RATE if self.is_exact else STEP_SECONDS


def make_listener(model: CTCModel, inference: Inference) -> Listener:
    """Return what hears one stream with a model; `inference` says where and how precisely."""
    config = model.encoder.config
    if not config.context.is_causal:
        return Listener(lambda samples: inference.run_alone("stream", without_noise(samples))[0])
    past = model.encoder.begin_stream()

    def extend(waveforms: Tensor, lengths: Tensor | None) -> list[Tensor]:
        return [model(waveforms, lengths, past=past).log_probs]

    exact, epsilon = inference.with_model(extend), config.normalization_epsilon
    return Listener(
        lambda samples: exact.run_alone("stream", samples)[0],
        past,
        None if epsilon is None else RunningNorm(epsilon),
    )
