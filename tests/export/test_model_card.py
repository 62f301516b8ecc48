"""The card says what is known, in a form that the hub reads, and nothing of another model."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from speechssl.checkpoint.reader import read_model
from speechssl.errors import ConfigError
from speechssl.export.export import export_model
from speechssl.export.model_card import make_card

yaml = pytest.importorskip("yaml")


def head(card: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return values


@pytest.mark.parametrize(
    ("licenses", "expected"),
    [
        (["CC-BY-4.0"], {"license": "cc-by-4.0"}),
        (["cc0-1.0: Common Voice", "CC0-1.0"], {"license": "cc0-1.0"}),
        (["CC-BY-SA-3.0 (en) and CC-BY-3.0 (it)"], {"license": "other"}),
        (["CC-BY-4.0", 'all mine: "no" #1'], {"license": "other"}),
        ([], {}),
    ],
)
def test_the_license_is_that_of_all_data(
    licenses: Sequence[str], expected: dict[str, str], save: Any, encoders: Any, make_data: Callable[..., Any]
) -> None:
    data = tuple(make_data(license_) for license_ in licenses)
    found = head(make_card("me/x", read_model(save(encoders["base"], training_data=data).folder), "onnx", "Run.", ()))
    assert found.get("license") == expected.get("license")
    assert found.get("license_name") == ("; ".join(licenses) if expected.get("license") == "other" else None)


def scores(file: Path, num_parameters: int, step: int = 3) -> Path:
    rate = {"value": 0.2345, "low": 0.2, "high": 0.251}
    evaluation = {
        "manifest": "data/test one.tsv",
        "num_utterances": 12,
        "audio_seconds": 90.0,
        "decoding": "greedy",
        "wer": rate,
        "cer": {"value": 0.1, "low": 0.09, "high": 0.12},
    }
    file.write_text(json.dumps({"step": step, "num_parameters": num_parameters, "evaluations": [evaluation]}), "utf-8")
    return file


def test_data_scores_and_compute(save: Any, encoders: Any, make_data: Any, tmp_path: Path) -> None:
    ours = save(encoders["prompts"], training_data=(make_data("CC0-1.0", "pretrain"), make_data()))
    run, earlier = tmp_path / "run", tmp_path / "earlier"
    for folder, stage, init in ((run, "finetune", str(earlier)), (earlier, "pretrain", "")):
        folder.mkdir()
        config = {"batches": {"seconds": 30.0}, "trainer": {"microbatches": 4}, "init": init}
        (folder / "run.json").write_text(json.dumps({"stage": stage, "config": config}), "utf-8")
        lines = [{"step": step, "split": "train", "audio_seconds_per_second": 60.0 * step} for step in (1, 2, 3)]
        (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", "utf-8")
    (run / "checkpoints").mkdir()
    ours.folder.rename(run / "checkpoints" / "step_3")
    (run / "best").symlink_to(run / "checkpoints" / "step_3")
    num_parameters = sum(parameter.numel() for parameter in ours.model.parameters())
    card = make_card(
        "me/x", read_model(run), "transformers", "Run it.", [scores(tmp_path / "scores.json", num_parameters)]
    )
    assert "with 9 symbols" in card
    assert "a frame every 40 ms" in card
    assert "| pretrain | 1.50 | not used | CC0-1.0 |\n| finetune | 1.50 | used | CC-BY-4.0 |" in card
    assert "3 updates in the last stage." in card
    # 3 updates of 4 x 30 s at 120 s a second take 3 s.
    assert "Finetune: 3 updates of up to 120 s of audio, at 120 s of audio a second: at most 0.1 minutes." in card
    assert "Pretrain: 3 updates" in card
    assert "| test one.tsv: 12 utterances, 1.5 minutes | greedy | 23.4 [20.0, 25.1] | 10.0 [9.0, 12.0] |" in card
    found = head(card)
    assert found["pipeline_tag"] == "automatic-speech-recognition"
    [result] = found["model-index"][0]["results"]
    assert [(metric["type"], metric["value"]) for metric in result["metrics"]] == [("wer", 23.45), ("cer", 10.0)]


def test_an_encoder_with_nothing_known(save: Any, encoders: Any) -> None:
    card = make_card("x", read_model(save(encoders["base"], None, training_data=()).folder), "transformers", "Run.", ())
    assert head(card)["pipeline_tag"] == "feature-extraction"
    assert "was not trained to transcribe" in card
    assert "What it took was not recorded." in card
    assert "## Scores" not in card


def test_a_model_of_another_toolkit(save: Any, encoders: Any, tmp_path: Path) -> None:
    """Exported, read back and exported again."""
    export_model(save(encoders["base"]).folder, tmp_path / "theirs", "huggingface")
    card = make_card("x", read_model(tmp_path / "theirs"), "transformers", "Run.", ())
    assert "from a model of transformers wav2vec2." in card
    assert "updates in the last stage" not in card
    assert head(card)["license"] == "cc-by-4.0"
    assert "| unknown |" in card  # its hours


def test_scores_of_another_model_are_refused(save: Any, encoders: Any, tmp_path: Path) -> None:
    ours = save(encoders["base"])
    saved = read_model(ours.folder)
    num_parameters = sum(parameter.numel() for parameter in ours.model.parameters())
    for file, expected in (
        (scores(tmp_path / "a.json", num_parameters, step=4), "expected the scores of this model .* found another's"),
        (scores(tmp_path / "b.json", num_parameters + 1), "found another's"),
        (tmp_path / "missing.json", "No such file"),
        (ours.folder / "config.json", "expected what speechssl evaluate --output writes"),
        (ours.folder / "model.safetensors", "expected what speechssl evaluate --output writes"),
    ):
        with pytest.raises(ConfigError, match=expected):
            make_card("x", saved, "onnx", "Run.", [file])
