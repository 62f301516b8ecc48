"""PyTorch files of other toolkits, which are pickles: read without their classes, and without running anything.

PyTorch's restricted unpickler knows tensors and plain values. What else training programs leave in such files
(settings, dictionaries, meters) becomes a `Placeholder` that stores what it is given, if its name is in the list below.
A file with any other name is refused.
"""

import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, ItemsView, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechssl.checkpoint.foreign import Names, shortened
from speechssl.errors import CheckpointError


class Placeholder:
    """An object of a class that is not here: the arguments that made it and the state that it was given."""

    __slots__ = ("arguments", "state")
    origin = ""
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> "Placeholder":
        """Store the arguments, whatever they are."""
        instance = super().__new__(cls)
        instance.arguments = arguments
        instance.state = None
        return instance

    def __setstate__(self, state: Any) -> None:
        self.state = state


_PLACEHOLDERS = {
    "argparse": "Namespace",
    "enum": "Enum",
    "pathlib": "Path PosixPath WindowsPath",
    # types of settings, which OmegaConf keeps beside the values
    "_operator": "getitem",
    "builtins": "bool dict float int list object str tuple type",
    "typing": "Any Dict List Optional Tuple Union",
    "omegaconf.base": "ContainerMetadata Metadata",
    "omegaconf.dictconfig": "DictConfig",
    "omegaconf.listconfig": "ListConfig",
    "omegaconf.nodes": "AnyNode BooleanNode BytesNode EnumNode FloatNode IntegerNode PathNode StringNode",
    "fairseq.criterions.ctc": "CtcCriterionConfig",
    "fairseq.criterions.hubert_criterion": "HubertCriterionConfig",
    "fairseq.criterions.model_criterion": "ModelCriterionConfig",
    "fairseq.criterions.wav2vec_criterion": "Wav2VecCriterionConfig",
    "fairseq.dataclass.configs": "CheckpointConfig CommonConfig CommonEvalConfig DatasetConfig EMAConfig EvalLMConfig"
    " DistributedTrainingConfig FairseqBMUFConfig FairseqConfig FairseqDataclass GenerationConfig InteractiveConfig"
    " OptimizationConfig",
    "fairseq.dataclass.constants": "Choices StrEnum",
    "fairseq.models.hubert.hubert": "HubertConfig",
    "fairseq.models.hubert.hubert_asr": "HubertAsrConfig HubertCtcConfig",
    "fairseq.models.wav2vec.wav2vec": "Wav2VecConfig",
    "fairseq.models.wav2vec.wav2vec2": "Wav2Vec2Config",
    "fairseq.models.wav2vec.wav2vec2_asr": "Wav2Vec2AsrConfig Wav2Vec2CtcConfig",
    "fairseq.optim.adam": "FairseqAdamConfig",
    "fairseq.optim.composite": "CompositeOptimizerConfig OptimizerAndSchedulerConfig",
    "fairseq.optim.lr_scheduler.cosine_lr_scheduler": "CosineLRScheduleConfig",
    "fairseq.optim.lr_scheduler.polynomial_decay_schedule": "PolynomialDecayLRScheduleConfig",
    "fairseq.optim.lr_scheduler.tri_stage_lr_scheduler": "TriStageLRScheduleConfig",
    "fairseq.tasks.audio_finetuning": "AudioFinetuningConfig",
    "fairseq.tasks.audio_pretraining": "AudioPretrainingConfig InferredW2vConfig",
    "fairseq.tasks.hubert_pretraining": "HubertPretrainingConfig",
    "fairseq.data.dictionary": "Dictionary",
    "fairseq.logging.meters": "AverageMeter StopwatchMeter TimeMeter",
    "fairseq.meters": "AverageMeter StopwatchMeter TimeMeter",
    # scores, which NumPy computed
    "numpy": "dtype ndarray",
    "numpy.core.multiarray": "_reconstruct scalar",
    "numpy._core.multiarray": "_reconstruct scalar",
}
_REFUSED = re.compile(r"GLOBAL (\S+) (?:was not an allowed global|whose module)")
_MAX_VALUES, _MAX_DEPTH = 200_000, 40  # of settings


def _reason(error: Exception) -> str:
    """What the unpickler found, without the paragraphs of advice around it."""
    if isinstance(error, EOFError):
        return "it ends too soon"
    said = str(error).partition("\n\nCheck the documentation")[0].strip().rpartition("\n\n")[2].partition("\n")[0]
    return shortened(said) or type(error).__name__


def make_placeholder(origin: str) -> type[Placeholder]:
    """Return a class that stands for one that is not here, by its full name."""
    return type(origin.rpartition(".")[2], (Placeholder,), {"__slots__": (), "origin": origin})


def _empty_dictionary(*arguments: Any) -> OrderedDict[Any, Any]:
    """What a ``defaultdict`` becomes, for its items follow."""
    return OrderedDict()


_SAFE: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_empty_dictionary, "collections.defaultdict"),
    *((make_placeholder(f"{m}.{n}"), f"{m}.{n}") for m, names in _PLACEHOLDERS.items() for n in names.split()),
]


def read_pickle(file: Path) -> Any:
    """Read a file of ``torch.save``; tensors of the newer (zip) format are mapped into memory rather than read.

    Raises:
        CheckpointError: it cannot be read, is no such file, is damaged, or holds what is neither tensors, plain values
            nor placeholders.
    """
    try:
        with file.open("rb") as opened:
            magic = opened.read(4)
        is_zip = magic == b"PK\x03\x04"
        if not is_zip and not magic.startswith(pickle.PROTO):
            raise CheckpointError(f"{file}: expected a complete PyTorch file, found another kind of file")
        if is_zip:
            _check_archive(file)
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_SAFE):
            contents = torch.load(file, "cpu", weights_only=True, mmap=is_zip)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror or error}") from None
    except Exception as error:  # whatever the unpickler stumbles over is in the file
        if isinstance(error, pickle.UnpicklingError) and (refused := _REFUSED.search(str(error))):
            found = f"found {shortened(refused[1])}, which is refused: it could run code"
            raise CheckpointError(f"{file}: expected weights and settings, {found}") from None
        raise CheckpointError(f"{file}: expected a complete PyTorch file: {_reason(error)}") from None
    if not isinstance(contents, dict):
        return contents
    return {name: _plain_dictionary(value) if isinstance(value, dict) else value for name, value in _items(contents)}


def read_tensors(weights: Any, names: Names, file: Path) -> dict[str, Tensor]:
    """Return the tensors of a state dictionary that came from a file, without those of heads that are not ours.

    Args:
        weights: The dictionary.
        names: Of the family.
        file: Where it comes from.

    Raises:
        CheckpointError: it has other things than named dense tensors, or they claim more than the file holds.
    """
    if not isinstance(weights, dict):
        raise CheckpointError(f"{file}: expected named weights, found {_kind(weights)}")
    weights = {name: value for name, value in _items(weights) if not names.is_dropped(str(name))}
    storages = {}
    for name, tensor in weights.items():
        # Attributes of a tensor, which its pickle may set, would stand before its methods.
        if type(name) is not str or type(tensor) not in (Tensor, torch.nn.Parameter) or vars(tensor):
            raise CheckpointError(f"{file}: expected named weights, found {shortened(repr(name))}: {_kind(tensor)}")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or not tensor.dtype.is_floating_point:
            found = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
            raise CheckpointError(f"{file}: {shortened(name)}: expected plain floating-point numbers, found {found}")
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        if tensor.numel() * tensor.itemsize > storage.nbytes():
            found = f"{tuple(tensor.shape)} from {storage.nbytes()} bytes"
            raise CheckpointError(f"{file}: {shortened(name)}: expected a number for each element, found {found}")
    if sum(storages.values()) > file.stat().st_size:
        raise CheckpointError(f"{file}: expected a complete PyTorch file, found weights larger than the file")
    return {name: tensor.detach() for name, tensor in weights.items()}


def bare_weights(contents: Any) -> dict[str, Any]:
    """Return what a file holds under ``model``, or else all of it, by names without the prefix of parallel training."""
    weights = contents.get("model", contents) if isinstance(contents, Mapping) else {}
    weights = weights if isinstance(weights, Mapping) else {}
    return {str(name).removeprefix("module."): tensor for name, tensor in weights.items()}


def plain_settings(value: Any, file: Path) -> Any:
    """Return settings as dictionaries, lists and plain values, whatever classes they had; tensors become None.

    Raises:
        CheckpointError: they are nested too deeply or too large for settings.
    """
    num_values = 0

    def convert(value: Any, depth: int) -> Any:
        """Return a value as plain JSON types, None for any other; too many or too deep raise a CheckpointError."""
        nonlocal num_values
        num_values += 1
        if num_values > _MAX_VALUES or depth > _MAX_DEPTH:
            raise CheckpointError(f"{file}: expected settings, found more than {_MAX_VALUES} values or a circle")
        if isinstance(value, Placeholder):
            content = _content(value)
            return None if content is value else convert(content, depth + 1)
        if isinstance(value, dict):
            return {key: convert(item, depth + 1) for key, item in _items(value) if isinstance(key, str | int)}
        if isinstance(value, list | tuple | set):
            return [convert(item, depth + 1) for item in value]
        return value if isinstance(value, str | int | float | bool) else None

    return convert(value, 0)


def _content(value: Placeholder) -> Any:
    """What a placeholder stands for; itself if that has no meaning here."""
    state = _plain_dictionary(value.state) if isinstance(value.state, dict) else {}
    if value.origin.startswith("omegaconf."):
        return state.get("_content", state.get("_val"))
    if value.origin in ("argparse.Namespace", "fairseq.data.dictionary.Dictionary"):
        return state
    if value.origin.startswith(("enum.", "fairseq.dataclass.constants.")) and value.arguments:
        return value.arguments[0]
    return value


def _items(values: dict[Any, Any]) -> ItemsView[Any, Any]:
    """The items of a dictionary, whose pickle may have put something else in the place of its methods."""
    return dict.items(values)


def _plain_dictionary(values: dict[Any, Any]) -> dict[Any, Any]:
    return dict(_items(values))


def _check_archive(file: Path) -> None:
    """Refuse an archive whose entries are compressed, which PyTorch's never are, or claim more than the file has."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    size = file.stat().st_size
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(
                f"{file}: expected uncompressed weights, found {shortened(entry.filename)} compressed"
            )
    if sum(entry.file_size for entry in entries) > size:
        raise CheckpointError(f"{file}: expected a complete PyTorch file, found entries larger than the file")


def _kind(value: Any) -> str:
    return value.origin if isinstance(value, Placeholder) else type(value).__name__
