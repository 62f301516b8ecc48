"""An exported folder loads into torchaudio by the code on its card, with the same numbers."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from speechssl.errors import CheckpointError
from speechssl.export.export import export_model


@pytest.mark.parametrize("name", ["base", "large", "prompts"])
@pytest.mark.parametrize("has_head", [True, False])
def test_numbers_are_ours(
    name: str,
    has_head: bool,
    save: Any,
    encoders: Any,
    letters: Any,
    sound: Callable[..., Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    try:
        import torchaudio.models  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"torchaudio does not load: {error}")
    ours = save(encoders[name], letters if has_head else None)
    export_model(ours.folder, tmp_path / "out", "torchaudio")
    monkeypatch.chdir(tmp_path / "out")
    card = Path("README.md").read_text("utf-8")
    assert ("zero mean and unit variance" in card) is bool(encoders[name].normalize_waveforms)
    waveforms = sound(12_345)[None]
    with torch.no_grad():
        expected = ours.model(waveforms).log_probs if has_head else ours.model.encode(waveforms).context
        if encoders[name].normalize_waveforms:
            epsilon = encoders[name].normalize_waveforms
            waveforms = F.layer_norm(waveforms, waveforms.shape[1:], eps=1e-5 if epsilon is True else epsilon)
        place = {"waveforms": waveforms}
        exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], place)
    found = place["logits"].log_softmax(dim=2) if has_head else place["logits"]
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    if has_head:
        assert json.loads(Path("vocab.json").read_text("utf-8"))["<blank>"] == 0


@pytest.mark.parametrize(("name", "found"), [("adapters", "one with adapters"), ("wavlm", "wavlm")])
def test_what_it_has_not_is_refused(name: str, found: str, save: Any, encoders: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"expected wav2vec 2.0's transformer .*, found {found}"):
        export_model(save(encoders[name]).folder, tmp_path / "out", "torchaudio")
