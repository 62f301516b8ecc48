import torch

from speechssl.data.units import num_frames_needed
from speechssl.decode.forced_alignment import align


def planted(symbols: list[int], num_symbols: int = 4) -> torch.Tensor:
    return torch.log_softmax(5 * torch.nn.functional.one_hot(torch.tensor(symbols), num_symbols).float(), dim=1)


def test_each_label_has_the_frames_that_show_it() -> None:
    path = align(planted([0, 1, 1, 0, 2, 0, 2, 3]), [1, 2, 2, 3], 0, first_frame=10)
    assert [(token.symbol_id, token.first_frame, token.last_frame) for token in path] == [
        (1, 11, 12),
        (2, 14, 14),
        (2, 16, 16),
        (3, 17, 17),
    ]


def test_the_text_wins_over_what_the_model_prefers() -> None:
    labels = [1, 3, 3]
    path = align(planted([0, 1, 0, 2, 0, 0])[: num_frames_needed(labels) + 2], labels, 0)
    assert [token.symbol_id for token in path] == labels
    assert path[0].first_frame == 1


def test_no_text_has_no_tokens() -> None:
    assert align(planted([0, 1]), [], 0) == []
