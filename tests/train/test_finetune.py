"""Fine-tuning: that it learns, what it starts from, what stays as it was, what it refuses."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from losses import loss_sum
from torch import Tensor

from speechssl.checkpoint.reader import load_ctc, load_encoder, read_model
from speechssl.data.manifest import read_manifest, read_utterance, write_manifest
from speechssl.data.units import Letters
from speechssl.decode.greedy import greedy_path
from speechssl.errors import CheckpointError, ConfigError, ManifestError, TrainingError
from speechssl.model.ctc import CTCModel, CTCOutput, consistency_losses, ctc_losses
from speechssl.objective.objective import Term
from speechssl.scoring.error_rates import score
from speechssl.train.finetune import FinetuneConfig, finetune
from speechssl.train.finetune import make_task as make
from speechssl.train.finetune_model import FinetuneModel
from speechssl.train.labeled import LabeledBatch
from speechssl.train.log import MetricSums, read_log, read_samples
from speechssl.train.parallel import Ranks
from speechssl.train.task import Measured, Task

ALONE = Ranks(0, 1, torch.device("cpu"))
NO_NOISE = (
    "regularization.activation_dropout=0.0",
    "regularization.layer_drop=0.0",
    "regularization.time_mask.start_prob=0.0",
    "regularization.channel_mask.start_prob=0.0",
)


def make_task(config: FinetuneConfig) -> Task[LabeledBatch]:
    torch.manual_seed(config.seed)
    train, dev = read_manifest(config.data.train), read_manifest(config.data.dev)
    vocabulary = Letters.from_texts(utterance.text or "" for utterance in train)
    return make(config, None, vocabulary, train, dev)


def changed_encoder_parts(run: Path, init: Path) -> set[str]:
    """The parts of the encoder whose weights differ from those it was started from."""
    before, after = load_encoder(init).state_dict(), load_encoder(run).state_dict()
    assert before.keys() == after.keys()
    return {name.split(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name])}


WAV2VEC = (
    'encoder.feature_encoder.norm="utterance"',
    'encoder.feature_encoder.activation="relu"',
    "encoder.feature_encoder.log_compression=true",
    "encoder.feature_encoder.frame_norm=false",
    'encoder.context={kind="causal", model_dim=32, kernels=[2, 3, 4]}',
)


CAUSAL_TRANSFORMER = (
    'encoder.feature_encoder.norm="layer"',
    'encoder.context={kind="causal_transformer", num_layers=2, model_dim=32, num_heads=2, ffn_dim=64, '
    "position_kernel=8, position_groups=2}",
)


@pytest.mark.parametrize(
    ("architecture", "num_steps"),
    [((), 80), (WAV2VEC, 240), (CAUSAL_TRANSFORMER, 160)],
    ids=["wav2vec2", "wav2vec", "causal_transformer"],
)
def test_eight_utterances_are_learnt_to_the_letter(
    corpus: Any, tmp_path: Path, architecture: tuple[str, ...], num_steps: int
) -> None:
    texts = ["ab", "c da", "bad", "cab dab", "aa bb", "d", "dcba abcd", "bb a"]
    manifest = corpus.write(tmp_path / "train.tsv", texts)
    config = corpus.finetune_config(
        *NO_NOISE,
        *architecture,
        f"data.train={manifest}",
        f"data.dev={manifest}",
        "optimizer.learning_rate=5e-3",
        f"trainer.num_steps={num_steps}",
        "trainer.microbatches=1",
        "trainer.log_steps=20",
        "trainer.evaluate_steps=20",
        "trainer.checkpoint_steps=80",
        "batches.seconds=16",
        stage="scratch",
    )
    finetune(config, tmp_path / "run")
    records = read_log(tmp_path / "run")
    assert (records[-1]["wer"], records[-1]["cer"]) == (0, 0)
    assert next(record for record in records if record["split"] == "dev")["wer"] > 0, "too easy to show anything"
    checkpoint = load_ctc(tmp_path / "run")
    found = []
    for utterance in read_manifest(manifest):
        (log_probs,) = checkpoint.model(torch.from_numpy(read_utterance(utterance))[None]).log_probs
        path = greedy_path([log_probs], checkpoint.vocabulary.blank_id)
        found.append(checkpoint.vocabulary.decode(token.symbol_id for token in path))
    assert found == texts
    samples = read_samples(tmp_path / "run")
    assert [line["step"] for line in samples[:: len(texts)]] == list(range(20, num_steps + 1, 20))
    for line, text in zip(samples[-len(texts) :], texts, strict=True):
        assert line["reference"] == line["hypothesis"] == text
    assert any(line["reference"] != line["hypothesis"] for line in samples)


def test_a_few_utterances_are_sampled_all_over_the_dev_set(corpus: Any, tmp_path: Path) -> None:
    texts = [*["ab"] * 4, "", *["cd"] * 15]
    manifest = corpus.write(tmp_path / "dev.tsv", texts)
    task = make_task(corpus.finetune_config("batches.seconds=1", f"data.dev={manifest}", stage="scratch"))
    with torch.no_grad():
        measured = [task.evaluate(batch, 0) for batch in task.dev.read_share(0, 1)]
    chosen = sorted(sample for of_batch in measured for sample in of_batch.samples)
    assert [sample.utterance for sample in chosen] == [0, 2, 5, 8, 10, 12, 15, 17]
    assert all(sample.reference == texts[sample.utterance] for sample in chosen)


def test_a_run_is_a_ctc_model_with_its_history(corpus: Any, pretrained: Path, tmp_path: Path) -> None:
    overrides = ("regularization.dropout=0.125", "regularization.attention_dropout=0.25")
    config = corpus.finetune_config(
        f"init={pretrained}",
        "data.license=CC-BY: labels",
        "trainer.num_steps=2",
        "regularization.input_dropout=0.375",
        "regularization.activation_dropout=0.5",
        "regularization.layer_drop=0.0625",
        *overrides,
    )
    finetune(config, tmp_path / "run")
    checkpoint = load_ctc(tmp_path / "run")
    assert checkpoint.vocabulary.symbols == ("<blank>", "|", "a", "b", "c", "d")
    description = checkpoint.description
    assert description.step == 2
    assert [(data.stage, data.license, data.labeled) for data in description.training_data] == [
        ("pretrain", "CC0: tones", False),
        ("finetune", "CC-BY: labels", True),
    ]
    # The dropouts are those of the regularization, everything else is the pretrained encoder's.
    past = read_model(pretrained).description.encoder.to_dict()
    past["context"]["input_dropout"] = 0.375
    past["context"] |= {
        "dropout": 0.125,
        "attention_dropout": 0.25,
        "activation_dropout": 0.5,
        "layer_drop": 0.0625,
    }
    assert description.encoder.to_dict() == past
    assert set(read_log(tmp_path / "run")[-1]) == {"step", "split", "loss", "ctc", "wer", "cer", "nothing_said"}


def test_the_encoder_starts_from_the_model_and_stays_while_the_head_learns(
    corpus: Any, pretrained: Path, tmp_path: Path
) -> None:
    config = corpus.finetune_config(f"init={pretrained}", "head_only_steps=3", "trainer.num_steps=3")
    finetune(config, tmp_path / "run")
    assert changed_encoder_parts(tmp_path / "run", pretrained) == set()
    assert read_model(tmp_path / "run").weights["head.bias"].abs().min() > 0


@pytest.mark.parametrize("head_only_steps", [0, 2])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_convolutions_learn_unless_they_are_frozen(
    corpus: Any, pretrained: Path, tmp_path: Path, is_frozen: bool, head_only_steps: int
) -> None:
    config = corpus.finetune_config(
        f"init={pretrained}",
        f"feature_encoder_is_frozen={str(is_frozen).lower()}",
        f"head_only_steps={head_only_steps}",
        "trainer.num_steps=4",
        "regularization.time_mask.min_spans=1",
        "regularization.layer_drop=0.0",
    )
    finetune(config, tmp_path / "run")
    # Norm and projection of the frames learn with the context network, as in fairseq.
    learned = {"frame_norm", "context"}
    expected = learned if is_frozen else learned | {"feature_encoder"}
    assert changed_encoder_parts(tmp_path / "run", pretrained) == expected
    numbers = safetensors.torch.load_file(tmp_path / "run" / "latest" / "training.safetensors")
    assert numbers["step/ctc.head.bias"] == 4
    assert numbers["step/ctc.encoder.context.mask_embedding"] == 4 - head_only_steps


def test_gradients_add_up_over_microbatches(
    corpus: Any, tmp_path: Path, record_gradients: Callable[[Callable[[], None]], Any]
) -> None:
    texts = ["abc", "dcb", "ab d", "ccda", "bdab", "a bc", "dd a", "cab cab dada"]
    train = corpus.write(tmp_path / "train.tsv", texts)
    longest = max(utterance.num_samples for utterance in read_manifest(train)) / 16_000

    def gradients(microbatches: int) -> tuple[Any, list[float]]:
        config = corpus.finetune_config(
            *NO_NOISE,
            f"data.train={train}",
            f"trainer.microbatches={microbatches}",
            "trainer.num_steps=2",
            "batches.num_buckets=1",
            f"batches.seconds={8 // microbatches * longest + 0.01}",
            stage="scratch",
        )
        run = tmp_path / str(microbatches)
        found = record_gradients(lambda: finetune(config, run))
        batches = list(make_task(config).train.read(range(microbatches)))
        assert [len(batch.audio.indices) for batch in batches] == [8 // microbatches] * microbatches
        assert len({batch.audio.waveforms.shape[1] for batch in batches}) > 1 or microbatches == 1, "no padding differs"
        return found, [record["loss"] for record in read_log(run) if record["split"] == "train"]

    (whole, whole_losses), (parts, part_losses) = gradients(1), gradients(4)
    assert len(whole.updates) == 2
    parts.assert_close(whole)
    assert part_losses == pytest.approx(whole_losses, rel=1e-5)


def test_masks_are_drawn_for_each_utterance_and_epoch_and_only_for_training(
    corpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ("regularization.time_mask.min_spans=1", "regularization.channel_mask.min_spans=1")
    task = make_task(corpus.finetune_config(*overrides, stage="scratch"))
    count = task.train.sampler.num_batches
    epochs = [
        {
            index: (batch.mask[row].tolist(), batch.channel_mask[row].tolist())
            for batch in task.train.read(range(epoch * count, (epoch + 1) * count))
            for row, index in enumerate(batch.audio.indices)
        }
        for epoch in range(2)
    ]
    assert epochs[0].keys() == epochs[1].keys() == set(range(16))
    for masks in epochs:
        assert all(any(mask) and any(channels) for mask, channels in masks.values())
        assert len({str(channels) for _, channels in masks.values()}) > 8
    assert sum(epochs[0][index] != epochs[1][index] for index in range(16)) > 8

    seen: list[Any] = []
    forward = task.model.ctc.forward

    def remember(waveforms: Tensor, lengths: Tensor | None, mask: Any = None, channel_mask: Any = None) -> Any:
        seen.append((mask, channel_mask))
        return forward(waveforms, lengths, mask, channel_mask)

    monkeypatch.setattr(task.model.ctc, "forward", remember)
    batch = next(task.train.read([0]))
    task.model(batch, 0)
    task.model.eval()
    task.evaluate(batch, 0)
    assert [tuple(mask is not None for mask in masks) for masks in seen] == [(True, True), (False, False)]


def test_two_views_are_trained_to_agree(corpus: Any) -> None:
    overrides = ("regularization.time_mask.min_spans=2", "regularization.channel_mask.min_spans=2")

    def make(consistency: float) -> tuple[Task[LabeledBatch], LabeledBatch]:
        task = make_task(
            corpus.finetune_config(*overrides, f"regularization.consistency={consistency}", stage="scratch")
        )
        task.model.eval()  # no noise but the masks
        torch.nn.init.normal_(task.model.ctc.head.weight)
        return task, next(task.train.read([0]))

    task, batch = make(0.5)
    audio, number = batch.audio, len(batch.texts)
    views = [
        task.model.ctc(audio.waveforms, audio.lengths, *pair)
        for pair in zip(batch.mask.chunk(2), batch.channel_mask.chunk(2), strict=True)
    ]
    ctc = sum(ctc_losses(view, batch.labels, batch.num_frames, batch.num_labels, 0).sum().item() for view in views) / 2
    output = CTCOutput(torch.cat([view.log_probs for view in views]), torch.cat([view.frame_lengths for view in views]))
    apart = consistency_losses(output).sum().item()
    assert apart > 1
    losses = task.model(batch, 0)
    assert loss_sum(losses).item() == pytest.approx(ctc + 0.5 * apart, rel=1e-4)
    assert losses["consistency"].sum.item() == pytest.approx(apart, rel=1e-4)
    assert losses["loss_per_label"].sum.item() == pytest.approx(ctc, rel=1e-4)
    assert batch.counts == {"utterances": number, "labels": sum(batch.num_labels)}

    task, batch = make(0.0)
    losses = task.model(batch, 0)
    assert set(losses) == {"ctc", "loss_per_label"}
    assert len(batch.mask) == len(batch.texts)


def test_masks_never_hide_padding(corpus: Any) -> None:
    task = make_task(corpus.finetune_config("regularization.time_mask.start_prob=0.5", stage="scratch"))
    checked = 0
    for batch in task.train.read(range(10)):
        if batch.audio.lengths is None:
            continue
        lengths = task.train.collate.geometry.num_frames(batch.audio.lengths)
        padding = torch.arange(batch.mask.shape[1]) >= lengths[:, None]
        assert not (batch.mask & padding).any()
        checked += int(padding.any())
    assert checked


def test_error_rates_are_over_all_words_of_the_dev_set(corpus: Any) -> None:
    task = make_task(corpus.finetune_config("batches.seconds=1", stage="scratch"))
    task.model.eval()
    sums, texts = MetricSums(), []
    with torch.no_grad():
        batches = list(task.dev.read_share(0, 1))
        assert len(batches) > 1
        for batch in batches:
            measured = task.evaluate(batch, 0)
            sums.add(measured.losses, measured.counts)
            output = task.model.ctc(batch.audio.waveforms, batch.audio.lengths)
            vocabulary = task.train.collate.vocabulary
            rows = zip(output.log_probs, batch.num_frames, strict=True)
            paths = [greedy_path([row[:length]], 0) for row, length in rows]
            heard = [vocabulary.decode(token.symbol_id for token in path) for path in paths]
            texts += zip(batch.texts, heard, strict=True)
    found, expected = sums.means(ALONE), score(*zip(*texts, strict=True))
    assert (found["wer"], found["cer"]) == (pytest.approx(expected.wer), pytest.approx(expected.cer))


@pytest.mark.parametrize("metric", ["wer", "cer"])
def test_the_best_checkpoint_is_chosen_by_the_configured_rate(
    corpus: Any, tmp_path: Path, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = iter([{"wer": 0.5, "cer": 0.1}, {"wer": 0.4, "cer": 0.2}])

    def evaluate(self: FinetuneModel, batch: LabeledBatch, vocabulary: Letters, sampled: Any) -> Measured:
        return Measured({name: Term(torch.tensor(rate), "sets") for name, rate in next(rates).items()}, {"sets": 1})

    monkeypatch.setattr(FinetuneModel, "evaluate", evaluate)
    config = corpus.finetune_config(
        f"best_metric={metric}",
        "trainer.num_steps=2",
        "trainer.evaluate_steps=1",
        "batches.seconds=99",
        stage="scratch",
    )
    finetune(config, tmp_path / "run")
    assert read_model(tmp_path / "run").description.step == (2 if metric == "wer" else 1)


def test_an_encoder_comes_from_one_place(corpus: Any, pretrained: Path) -> None:
    message = "configuration: give either init, a model to start from, or encoder, the architecture to start afresh$"
    with pytest.raises(ConfigError, match=message):
        corpus.finetune_config()
    with pytest.raises(ConfigError, match=message):
        corpus.finetune_config(f"init={pretrained}", stage="scratch")


def test_a_model_that_is_none_is_refused(corpus: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such model folder"):
        finetune(corpus.finetune_config(f"init={tmp_path / 'nowhere'}"), tmp_path / "run")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text('{"model_type": "whisper"}')
    (tmp_path / "foreign" / "model.safetensors").write_text("")
    with pytest.raises(CheckpointError, match=r"config\.json: expected a model_type of wav2vec2"):
        finetune(corpus.finetune_config(f"init={tmp_path / 'foreign'}"), tmp_path / "run")


@pytest.mark.parametrize("split", ["train", "dev"])
def test_manifests_without_texts_are_refused(corpus: Any, tmp_path: Path, split: str) -> None:
    silent = [replace(utterance, text=None) for utterance in read_manifest(getattr(corpus, split))]
    path = tmp_path / "silent.tsv"
    write_manifest(path, silent, "/")
    config = corpus.finetune_config(f"data.{split}={path}", stage="scratch")
    with pytest.raises(ManifestError, match=r"silent\.tsv: expected transcripts in a column text, found none"):
        finetune(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": None}, "expected a text, found none"),
        ({"text": " "}, "expected a text, found none"),
        ({"text": "ab" * 40}, "expected at least 81 frames for the labels, found 19 (0.40 s)"),
        ({"path": "/nowhere.wav"}, "/nowhere.wav: expected an audio file, found none"),
    ],
)
def test_utterances_that_cannot_be_scored_are_listed(
    corpus: Any, tmp_path: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    utterances = list(read_manifest(corpus.dev))
    path = tmp_path / "dev.tsv"
    bad = replace(utterances[0], num_samples=6_400, **changes)
    write_manifest(path, [utterances[1], bad, utterances[2], bad], "/")
    config = corpus.finetune_config(f"data.dev={path}", stage="scratch")
    count = 1 if "path" in changes else 2  # a file that cannot be read is named once
    with pytest.raises(TrainingError, match=rf"^{count} utterances are unfit for training; see `speechssl check`$"):
        finetune(config, tmp_path / "run")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [f"{path}:{line}: {message}" for line in (4, 6)[:count]]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_letters_that_only_dev_has_are_warned_of_and_count_as_errors(corpus: Any, tmp_path: Path) -> None:
    utterances = list(read_manifest(corpus.dev))
    write_manifest(tmp_path / "dev.tsv", [replace(utterances[0], text="ab xé"), *utterances[1:]], "/")
    config = corpus.finetune_config(f"data.dev={tmp_path / 'dev.tsv'}", "trainer.num_steps=1", stage="scratch")
    with pytest.warns(UserWarning, match=r"dev\.tsv: letters that .*tsv lacks cannot be learned: 'x' \(U\+0078\), 'é'"):
        finetune(config, tmp_path / "run")
    vocabulary = Letters.load(tmp_path / "run" / "latest" / "vocab.json")
    assert vocabulary.symbols == ("<blank>", "|", "a", "b", "c", "d", "x", "é")


def test_a_loss_that_is_not_finite_names_its_utterances(
    corpus: Any, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = CTCModel.forward
    calls = 0

    def poisoned(self: CTCModel, *arguments: Any) -> Any:
        nonlocal calls
        output = forward(self, *arguments)
        calls += self.training
        return replace(output, log_probs=output.log_probs * float("nan")) if calls == 6 else output

    monkeypatch.setattr(CTCModel, "forward", poisoned)
    config = corpus.finetune_config(f"init={pretrained}", "trainer.checkpoint_steps=1")
    with pytest.raises(
        TrainingError, match=rf"^step 3: expected a finite loss, found nan on {corpus.train}:\d+"
    ) as caught:
        finetune(config, tmp_path / "run")
    named = [int(where.rpartition(":")[2]) for where in str(caught.value).rpartition(" on ")[2].split(", ")]
    monkeypatch.undo()
    run = tmp_path / "run" / "latest"
    assert read_model(run).description.step == 2
    assert all(torch.isfinite(weight).all() for weight in read_model(run).weights.values())
    # Microbatch 5 is the second of the third update.
    task = make_task(corpus.finetune_config(stage="scratch"))
    assert [line - 3 for line in named] == list(next(task.train.read([5])).audio.indices)
