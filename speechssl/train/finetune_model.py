"""The loss of fine-tuning, and what is measured on the dev set."""

from collections.abc import Collection

import torch
from torch import nn

from speechssl.data.units import Units
from speechssl.decode.greedy import greedy_path
from speechssl.model.ctc import CTCModel, consistency_losses, ctc_losses, mean_ctc_losses
from speechssl.objective.objective import Losses, Term
from speechssl.scoring.error_rates import score, sum_counts
from speechssl.scoring.phonemes import count_phonemes
from speechssl.train.labeled import LabeledBatch, RegularizationConfig
from speechssl.train.task import Measured, Sample


class FinetuneModel(nn.Module):
    """A CTC model with its loss."""

    def __init__(self, ctc: CTCModel, regularization: RegularizationConfig, blank_id: int) -> None:
        super().__init__()
        self.ctc = ctc
        self.num_views = regularization.num_views
        self.consistency = regularization.consistency
        self.blank_id = blank_id

    def forward(self, batch: LabeledBatch, step: int) -> Losses:
        """Compute the CTC loss, of several views their mean, and how far the views are apart."""
        output = self.ctc(batch.audio.waveforms, batch.audio.lengths, batch.mask, batch.channel_mask)
        labels = batch.labels, batch.num_frames, batch.num_labels
        total = mean_ctc_losses(output, *labels, self.blank_id, self.num_views).sum()
        # Beside the loss of an utterance, whose length it depends on, that of a label.
        terms = {"ctc": Term(total, "utterances", 1.0), "loss_per_label": Term(total, "labels")}
        if self.consistency:
            terms["consistency"] = Term(consistency_losses(output).sum(), "utterances", self.consistency)
        return terms

    def evaluate(self, batch: LabeledBatch, vocabulary: Units, sampled: Collection[int] = ()) -> Measured:
        """Measure the loss and the errors of the greedy path over a dev batch; tell the texts of ``sampled``."""
        output = self.ctc(batch.audio.waveforms, batch.audio.lengths)
        loss = ctc_losses(output, batch.labels, batch.num_frames, batch.num_labels, self.blank_id).sum()
        rows = zip(output.log_probs.cpu(), batch.num_frames, strict=True)
        paths = (greedy_path([row[:length]], self.blank_id) for row, length in rows)
        hypotheses = [vocabulary.decode(token.symbol_id for token in path) for path in paths]
        result = score(batch.texts, hypotheses)
        errors = torch.tensor([result.words.total, result.characters.total])
        losses = {"ctc": Term(loss, "utterances", 1.0), "wer": Term(errors[0], "words")}
        losses["cer"] = Term(errors[1], "characters")
        losses["nothing_said"] = Term(torch.tensor(hypotheses.count("")), "utterances")
        lengths = {"words": result.words.reference_length, "characters": result.characters.reference_length}
        if vocabulary.kind == "phonemes":
            phonemes = sum_counts(count_phonemes(batch.texts, hypotheses))
            losses["per"] = Term(torch.tensor(phonemes.total), "phonemes")
            lengths["phonemes"] = phonemes.reference_length
        spoken = map(Sample, batch.audio.indices, batch.texts, hypotheses)
        samples = tuple(sample for sample in spoken if sample.utterance in sampled)
        return Measured(losses, {**batch.counts, **lengths}, samples)
