import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from speechssl.__main__ import app
from speechssl.errors import ConfigError
from speechssl.evaluate.compare import compare_evaluations, format_comparison, read_evaluation
from speechssl.scoring.error_rates import ErrorCounts


def write_run(path: Path, errors: list[int], manifest: str = "abc") -> Path:
    """An evaluation as the command writes it, with the parts that are compared."""
    utterances = [
        {"words": vars_of(ErrorCounts(count, 0, 0, 10)), "characters": vars_of(ErrorCounts(count, 0, 0, 40))}
        for count in errors
    ]
    path.write_text(json.dumps({"evaluations": [{"manifest_sha256": manifest, "utterances": utterances}]}))
    return path


def vars_of(counts: ErrorCounts) -> dict[str, int]:
    return {name: getattr(counts, name) for name in ("substitutions", "deletions", "insertions", "reference_length")}


def test_rates_and_ratio_are_over_all_runs(tmp_path: Path) -> None:
    baselines = [write_run(tmp_path / "a.json", [4, 4, 4]), write_run(tmp_path / "b.json", [6, 6, 6])]
    candidates = [write_run(tmp_path / "c.json", [2, 2, 2])]
    found = compare_evaluations(*([read_evaluation(path) for path in paths] for paths in (baselines, candidates)))
    assert found["words"].ratio.value == pytest.approx(0.4)
    assert found["words"].difference.value == pytest.approx(-0.3)
    assert found["characters"].difference.value == pytest.approx(-0.075)
    options = [part for path in baselines for part in ("--baseline", str(path))]
    result = CliRunner().invoke(app, ["compare", *options, *map(str, candidates)])
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == (
        "WER %: 40.0, 60.0 -> 20.0; ratio 0.40 [0.33, 0.50], difference -30.0 [-40.0, -20.0] points"
    )


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"evaluations": []}', '{"evaluations": [{"utterances": 3}]}'])
def test_files_that_are_no_evaluations_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(ConfigError, match=r"bad\.json: expected an evaluation of one manifest"):
        format_comparison([tmp_path / "bad.json"], [tmp_path / "bad.json"])


def test_other_normalizations_are_refused(tmp_path: Path) -> None:
    first, other = write_run(tmp_path / "a.json", [1]), write_run(tmp_path / "b.json", [1])
    content = json.loads(other.read_text())
    for normalization in ("lower case", "words without punctuation"):
        content["evaluations"][0]["normalization"] = normalization
        other.write_text(json.dumps(content))
        if normalization == "lower case":  # as earlier versions did without saying so
            assert format_comparison([first], [other])
        else:
            with pytest.raises(
                ConfigError, match=r"b\.json: expected texts compared as in .* \(lower case\), found wor"
            ):
                format_comparison([first], [other])


def test_other_manifests_and_missing_files_are_refused(tmp_path: Path) -> None:
    first, other = write_run(tmp_path / "a.json", [1]), write_run(tmp_path / "b.json", [1], manifest="xyz")
    with pytest.raises(ConfigError, match=r"b\.json: expected an evaluation on the manifest of .*a\.json"):
        format_comparison([first], [other])
    with pytest.raises(ConfigError, match=r"none\.json: No such file"):
        format_comparison([first], [tmp_path / "none.json"])
