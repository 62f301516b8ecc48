"""Batches of labeled speech: texts to labels, and what makes the recordings harder."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from speechssl.config import Config
from speechssl.data.augment import change_speed
from speechssl.data.batches import Example, TaskBatch, collate_audio
from speechssl.data.units import Units, num_frames_needed
from speechssl.frames import FrameGeometry, MaskConfig, draw_masks
from speechssl.model.encoder import EncoderConfig
from speechssl.rng import keyed_generator

_HIDE = 3  # the purpose of the generator that masks frames and channels
_SPEED = 6  # of the one that chooses speeds


class RegularizationConfig(Config):
    """What makes fine-tuning harder; it replaces the encoder's own dropouts. The defaults are wav2vec 2.0 base's.

    Unless ``consistency`` is 0, each batch goes through the context network twice, with masks and dropouts of its own
    each time; the loss is the mean CTC loss of both, plus ``consistency`` times how far they are apart (CR-CTC, Yao et
    al., 2025, https://arxiv.org/abs/2410.05101, with 0.2 and more time masks than usual).
    """

    speeds: tuple[float, ...] = (1.0,)  # each utterance is played at one of these, chosen anew in every epoch
    time_mask: MaskConfig = MaskConfig()  # hidden from the context network
    channel_mask: MaskConfig = MaskConfig(start_prob=0.25 / 64, span_frames=64, min_spans=0)  # set to zero
    dropout: float = Field(0.0, ge=0, lt=1)  # the only one of the five in a causal context network
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    activation_dropout: float = Field(0.1, ge=0, lt=1)  # inside feed-forward parts
    input_dropout: float = Field(0.0, ge=0, lt=1)  # on the projected frames
    layer_drop: float = Field(0.1, ge=0, lt=1)  # share of the layers left out
    consistency: float = Field(0.0, ge=0)

    @property
    def num_views(self) -> int:
        """How often the context network sees each batch."""
        return 2 if self.consistency else 1

    @model_validator(mode="after")
    def _has_speeds(self) -> Self:
        if not self.speeds or not 0.5 <= min(self.speeds) <= max(self.speeds) <= 2:
            raise ValueError(f"speeds needs values between 0.5 and 2, found {list(self.speeds)}")
        return self

    def apply(self, encoder: EncoderConfig) -> EncoderConfig:
        """The encoder's configuration with these dropouts."""
        values = encoder.to_dict()
        for name in ("dropout", "attention_dropout", "activation_dropout", "input_dropout", "layer_drop"):
            if name in values["context"]:
                values["context"][name] = getattr(self, name)
        return EncoderConfig.from_dict(values, "regularization")


@dataclass(frozen=True)
class LabeledBatch(TaskBatch):
    """Audio with labels and what to hide of it; its counts are "utterances" and "labels"."""

    labels: Tensor  # (sum of num_labels,) int64, one utterance after another; with fixed shapes (B, S), 0 behind them
    num_labels: tuple[int, ...]  # of each utterance; on the host, as CTC takes it
    num_frames: tuple[int, ...]
    mask: Tensor  # (W B, S) bool, True = hidden, for W views of the batch one after another
    channel_mask: Tensor  # (W B, the encoder's mask_dim) bool, True = zero
    texts: tuple[str, ...]


@dataclass(frozen=True)
class LabeledCollate:
    """Makes a batch in the loader's worker; speeds and masks depend on (seed, epoch, utterance), by `draw_masks`."""

    geometry: FrameGeometry
    mask_dim: int  # channels that channel masks choose from
    vocabulary: Units
    regularization: RegularizationConfig | None  # None leaves every recording as it is
    seed: int

    def __call__(self, examples: Sequence[Example]) -> LabeledBatch:
        """Encode the texts, change the speeds, stack the audio, draw the masks."""
        texts = tuple(example.text or "" for example in examples)
        labels = [self.vocabulary.encode(text) for text in texts]
        if self.regularization is not None:
            speeds = self.regularization.speeds
            examples = [self._at_some_speed(*pair, speeds) for pair in zip(examples, labels, strict=True)]
        audio = collate_audio(examples)
        lengths = [self.geometry.num_frames(len(example.waveform)) for example in examples]
        num_frames = self.geometry.num_frames(audio.waveforms.shape[1])
        num_views = 1 if self.regularization is None else self.regularization.num_views
        mask = torch.zeros(num_views, len(examples), num_frames, dtype=torch.bool)
        channel_mask = torch.zeros(num_views, len(examples), self.mask_dim, dtype=torch.bool)
        if self.regularization is not None:
            generators = [keyed_generator(self.seed, example.epoch, example.index, _HIDE) for example in examples]
            for view in range(num_views):
                frames = draw_masks(lengths, self.regularization.time_mask, generators)
                channels = draw_masks([self.mask_dim] * len(examples), self.regularization.channel_mask, generators)
                for row, (hidden, silent) in enumerate(zip(frames, channels, strict=True)):
                    mask[view, row, : len(hidden)] = torch.from_numpy(hidden)
                    channel_mask[view, row] = torch.from_numpy(silent)
        return LabeledBatch(
            audio=audio,
            counts={"utterances": len(texts), "labels": sum(map(len, labels))},
            labels=stack_labels(labels, None if examples[0].fixed_samples is None else num_frames),
            num_labels=tuple(map(len, labels)),
            num_frames=tuple(lengths),
            mask=mask.flatten(0, 1),
            channel_mask=channel_mask.flatten(0, 1),
            texts=texts,
        )

    def _at_some_speed(self, example: Example, labels: Sequence[int], speeds: Sequence[float]) -> Example:
        generator = keyed_generator(self.seed, example.epoch, example.index, _SPEED)
        changed = change_speed(example.waveform, float(generator.choice(speeds)))
        fits = self.geometry.num_frames(len(changed)) >= num_frames_needed(labels)
        if example.fixed_samples is not None:
            # The slowest has room, and a sample more: no batch is without padding, for which there is another path.
            room = math.ceil(example.fixed_samples / min(*speeds, 1.0)) + 1
            example = replace(example, fixed_samples=room)
        return replace(example, waveform=changed) if fits else example


def stack_labels(labels: Sequence[Sequence[int]], num_places: int | None) -> Tensor:
    """Return labels as `LabeledBatch` has them: one utterance after another, or (B, S) for so many places."""
    if num_places is None:
        return torch.tensor([*chain.from_iterable(labels)], dtype=torch.int64)
    places = max(num_places, *map(len, labels))  # more than frames there is no way to say
    return torch.tensor([[*row, *[0] * (places - len(row))] for row in labels], dtype=torch.int64)
