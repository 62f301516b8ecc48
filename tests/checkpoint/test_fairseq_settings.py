from pathlib import Path

import pytest

from speechssl.checkpoint.fairseq_settings import parse_layers
from speechssl.errors import CheckpointError


def test_layers_are_an_expression_that_is_not_run() -> None:
    base = ((512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2)
    for text in (
        "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]",
        "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2",
        [list(layer) for layer in base],
    ):
        assert parse_layers(text, Path("x")) == base


@pytest.mark.parametrize(
    "text",
    [
        "[(1, 1, 1)] * 10**9",
        "[(1, 1, 1)] * 1000000000",
        "([(1, 1, 1)] * 100 * 100) * 100 * 100 * 100",
        "[(1, 1)]",
        "[(1, 1, 'x')]",
        "[1]",
        "3",
        "exit()",
        "[(1, 1, 1) for _ in range(9)]",
        "(" * 1900,
        "[" * 1900,
        "",
        "[(1, 1, True)]",
    ],
)
def test_layers_that_are_something_else(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"expected \(channels, kernel, stride\) a layer"):
        parse_layers(text, Path("x"))
