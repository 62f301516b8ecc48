"""Self-supervised speech representations: pretrain on unlabeled audio, fine-tune with CTC, transcribe."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechssl.checkpoint.native import load_encoder
    from speechssl.data.manifest import read_manifest
    from speechssl.data.recording import read_audio
    from speechssl.errors import SpeechSSLError
    from speechssl.model.encoder import Encoded
    from speechssl.transcribe.transcriber import Transcriber
    from speechssl.transcribe.transcript import Transcript

__all__ = ["Encoded", "SpeechSSLError", "Transcriber", "Transcript", "load_encoder", "read_audio", "read_manifest"]
__version__ = "0.1.0"

# Loaded on first use, so that importing the package, or asking a command for help, loads no torch.
_HOMES = {
    "Encoded": "speechssl.model.encoder",
    "SpeechSSLError": "speechssl.errors",
    "Transcriber": "speechssl.transcribe.transcriber",
    "Transcript": "speechssl.transcribe.transcript",
    "load_encoder": "speechssl.checkpoint.native",
    "read_audio": "speechssl.data.recording",
    "read_manifest": "speechssl.data.manifest",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'speechssl' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
