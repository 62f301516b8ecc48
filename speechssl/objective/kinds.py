"""All objectives, of which ``kind`` in a configuration chooses one."""

from speechssl.objective.apc import ApcConfig
from speechssl.objective.best_rq import BestRqConfig
from speechssl.objective.contrastive import ContrastiveConfig
from speechssl.objective.masked_prediction import MaskedPredictionConfig
from speechssl.objective.spectral_contrast import SpectralContrastConfig
from speechssl.objective.wav2vec import Wav2vecConfig

AnyObjective = (
    ApcConfig  # a line each
    | BestRqConfig
    | ContrastiveConfig
    | MaskedPredictionConfig
    | SpectralContrastConfig
    | Wav2vecConfig
)
