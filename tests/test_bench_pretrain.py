"""The benchmark of training beside transformers, with models of no size."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch._dynamo
from programs import load_tool
from torch.nn import functional

from speechssl.data.batch_reader import BatchReader
from speechssl.model.ctc import CTCModel
from speechssl.model.feature_encoder import FeatureEncoder
from speechssl.model.position import PositionalConvolution
from speechssl.model.transformer import TransformerLayer
from speechssl.objective.contrastive import ContrastiveObjective

pytest.importorskip("transformers")

PROGRAM = Path(__file__).parents[1] / "tools" / "bench_pretrain.py"
CPU = torch.device("cpu")
PARTS = ("--parts", "--workers", "0")


@pytest.fixture(scope="module")
def program() -> Iterator[ModuleType]:
    path, threads, is_allowed = list(sys.path), torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    yield load_tool("bench_pretrain")
    sys.path[:] = path
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = is_allowed


@pytest.fixture
def cases(program: ModuleType) -> ModuleType:
    return sys.modules["training_cases"]


@pytest.fixture
def speed(program: ModuleType) -> ModuleType:
    return sys.modules["training_speed"]


@pytest.fixture
def noted_graphs(speed: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.fx.GraphModule]]:
    """What is compiled, to nothing else."""
    made: list[torch.fx.GraphModule] = []

    def note(graph: torch.fx.GraphModule, inputs: object) -> object:
        made.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(speed.compiled, "BACKEND", note)
    yield made
    torch._dynamo.reset()


def tables(text: str) -> dict[str, list[dict[str, str]]]:
    """Rows of cells by their heading, under the first word of the line above each table."""
    found: dict[str, list[dict[str, str]]] = {}
    for title, table in zip(*[iter(text.strip().split("\n\n"))] * 2, strict=True):
        head, rule, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        assert set(rule) == {"---"}
        found[title.split(maxsplit=1)[0]] = [dict(zip(head, row, strict=True)) for row in rows]
    return found


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_row_a_model_in_every_table(
    program: ModuleType,
    speed: ModuleType,
    stage: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--stage", stage, "--tiny", "--threads", "1", "--repeats", "1", "--peak-tflops", "1e-5", *PARTS]
    monkeypatch.setattr(sys, "argv", ["bench_pretrain.py", *arguments])
    program.main()
    said = capsys.readouterr().out
    assert said.startswith(f"Seconds of audio trained a second, {stage}, 1 threads, float32, ")
    found = tables(said)
    assert list(found) == ["Seconds", "Peak", "bf16", "Parts"]
    for row in found.pop("Parts"):
        assert row.keys() == {"part", *speed.SIDES}
        assert all(row["part"] == "an update" or cell.endswith("%)") for cell in list(row.values())[1:])
    for rows in found.values():
        assert [(row["model"], row["batch"]) for row in rows] == [("base", "2 x 2 s"), ("large", "2 x 2 s")]
    for row, rounding in [(row, 0.005) for row in found["Seconds"]] + [(row, 0.5) for row in found["Peak"]]:
        ours, theirs = float(row["speechssl"]), float(row["transformers"])
        assert ours > 0 < theirs
        assert list(row)[-1] == "ours / theirs"
        least, most = (ours - rounding) / (theirs + rounding), (ours + rounding) / (theirs - rounding)
        assert least - 0.005 <= float(row["ours / theirs"]) <= most + 0.005
    for row in found["Seconds"]:
        shares = [float(row[f"MFU of {side}"].removesuffix(" %")) / float(row[side]) for side in speed.SIDES]
        assert shares[0] == pytest.approx(shares[1], rel=0.01)  # of the same FLOPs
    for row in found["bf16"]:
        float32, bfloat16 = float(row["float32"]), float(row["bfloat16"])
        assert row["difference"] == f"{100 * (bfloat16 / float32 - 1):+.3f} %"
        assert 0 < abs(bfloat16 / float32 - 1) < 0.01


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_both_sides_are_compiled_if_asked(
    cases: ModuleType, speed: ModuleType, stage: str, noted_graphs: list[torch.fx.GraphModule]
) -> None:
    case = cases.make_case(stage, "base", 1.0, True)
    numbers = []
    for side in ("speechssl", "transformers", "speechssl compiled", "transformers compiled"):
        training = speed.build(side, case, CPU, "float32")
        training.update()
        training.update()
        numbers.append(len(noted_graphs))
    assert numbers[:3] == [0, 0, 1], "ours is one graph"
    assert numbers[3] > 1


def test_both_sides_compute_layers_again_if_asked(
    cases: ModuleType, speed: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    attend = functional.scaled_dot_product_attention

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return attend(*arguments, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", counted)
    case = cases.make_case("finetune", "base", 1.0, True)
    numbers = []
    for side in [side + way for way in ("", " checkpointed") for side in speed.SIDES]:
        calls.clear()
        torch.manual_seed(1)  # theirs leaves out the layers that it drops
        speed.build(side, case, CPU, "float32").update()
        numbers.append(len(calls))
    assert numbers[2:] == [2 * number for number in numbers[:2]]
    assert numbers[0] == 2
    assert numbers[1] > 0


def test_ratios_are_of_one_way(program: ModuleType) -> None:
    assert program.ratios([3.0, 2.0, None, 1.0]) == ["1.50", "-"]


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_the_time_of_an_update_is_shared_out(cases: ModuleType, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part takes what is added to it, forward and, of what learns, backward."""
    parts, case = sys.modules["training_parts"], cases.make_case(stage, "base", None, True)
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def takes(owner: Any, name: str, seconds: float) -> None:
        original = getattr(owner, name)

        def slow(*arguments: Any, **options: Any) -> Any:
            clock[0] += seconds
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, slow)

    takes(FeatureEncoder, "forward", 1.0)
    takes(PositionalConvolution, "forward", 2.0)
    takes(TransformerLayer, "forward", 4.0)
    takes(ContrastiveObjective if stage == "pretrain" else CTCModel, "forward", 100.0)
    takes(torch.optim.AdamW, "step", 32.0)
    takes(BatchReader, "__call__", 64.0)
    takes(torch.Tensor, "backward", 0.25)
    found = parts.measure_parts("speechssl", case, CPU, "float32", 1, 0)
    encoder = 1.25 if stage == "pretrain" else 1.0  # it is frozen in fine-tuning
    rest = 111.25 - encoder - 2.25 - 8.5
    assert list(found.values()) == [encoder, 2.25, 8.5, rest, 32.0, 64.0]
    assert list(found)[:3] == ["feature encoder", "positions", "transformer"]
    torch.manual_seed(1)  # theirs leaves out the layers that it drops
    theirs = parts.measure_parts("transformers", case, CPU, "float32", 1, 0)
    assert theirs.keys() == found.keys()
    assert theirs["positions"] == 0.25
    assert theirs["optimizer"] == 32.0


@pytest.mark.parametrize(
    ("stage", "name", "label", "gigaflops"),
    [
        pytest.param("pretrain", "base", "5 x 15.625 s", 46.2, id="base"),
        pytest.param("pretrain", "large", "3 x 20 s", 123.1, id="large"),
        # Less twice the 4.9 of the convolutions: 2 x (3 x 512^2 x 3000 + 2 x 512^2 x 150 + 10 x 512 x 3200) a second.
        pytest.param("finetune", "base", "7 x 20 s", 37.4, id="base finetuned"),
        pytest.param("finetune", "large", "4 x 20 s", 112.8, id="large finetuned"),
    ],
)
def test_the_recipes_batches_and_the_papers_sizes(
    cases: ModuleType, stage: str, name: str, label: str, gigaflops: float
) -> None:
    case = cases.make_case(stage, name, None, False)
    assert case.label == label
    assert case.flops_per_second / 1e9 == pytest.approx(gigaflops, rel=0.05)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_batch_shorter_than_a_clip_is_one_clip(cases: ModuleType, stage: str) -> None:
    assert cases.make_case(stage, "base", 3.0, True).label == "1 x 2 s"
    assert cases.make_case(stage, "base", 1.5, True).label == "1 x 1.5 s"


@pytest.mark.parametrize("name", ["base", "large"])
def test_both_sides_are_given_the_same_distractors(
    cases: ModuleType, speed: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = cases.make_case("pretrain", name, None, True)
    float32, bfloat16 = speed.compare_losses(case, CPU, True)
    assert abs(bfloat16 - float32) < 0.01 * float32
    right = case.their_inputs(CPU)
    others = right | {"sampled_negative_indices": right["sampled_negative_indices"].roll(1, dims=1)}
    monkeypatch.setattr(cases.PretrainCase, "their_inputs", lambda *_: others)
    with pytest.raises(AssertionError, match="expected transformers' loss of"):
        speed.compare_losses(case, CPU, False)


@pytest.mark.parametrize("name", ["base", "large"])
def test_both_sides_are_given_the_same_labels(
    cases: ModuleType, speed: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = cases.make_case("finetune", name, None, True)
    float32, bfloat16 = speed.compare_losses(case, CPU, True)
    assert abs(bfloat16 - float32) < 0.01 * float32
    right = case.their_inputs(CPU)
    others = right | {"labels": right["labels"][:, :-10]}
    monkeypatch.setattr(cases.FinetuneCase, "their_inputs", lambda *_: others)
    with pytest.raises(AssertionError, match="expected transformers' loss of"):
        speed.compare_losses(case, CPU, False)


@pytest.mark.parametrize("name", ["base", "large"])
def test_an_update_of_fine_tuning_trains_everything_but_the_convolutions(cases: ModuleType, name: str) -> None:
    case = cases.make_case("finetune", name, 2.0, True)
    for model, frozen in (
        (case.build_ours(), "ctc.encoder.feature_encoder."),
        (case.build_theirs(), "wav2vec2.feature_extractor."),
    ):
        trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained == {key for key, _ in model.named_parameters() if not key.startswith(frozen)}
    assert case.build_ours().ctc.encoder.config == case.config.regularization.apply(case.pretraining.encoder)


def test_what_does_not_fit_is_said(
    program: ModuleType, speed: ModuleType, cases: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = cases.make_case("pretrain", "base", 1.0, True)
    original = speed.build

    def build(side: str, *arguments: object) -> object:
        if side == "transformers":
            raise torch.OutOfMemoryError("too large")
        return original(side, *arguments)

    monkeypatch.setattr(speed, "build", build)
    peaks = [speed.measure_memory(side, case, CPU, "float32") for side in speed.SIDES]
    assert peaks[0] > 0
    assert [program.show(peak, 0) for peak in peaks] == [f"{peaks[0]:.0f}", "out of memory"]
    assert program.ratios(peaks) == ["-"]
