"""All objectives, of which ``kind`` in a configuration chooses one."""

from speechssl.objective.contrastive import ContrastiveConfig
from speechssl.objective.masked_prediction import MaskedPredictionConfig
from speechssl.objective.reconstruction import ReconstructionConfig
from speechssl.objective.spectral_contrast import SpectralContrastConfig
from speechssl.objective.wav2vec import Wav2vecConfig

AnyObjective = (
    ContrastiveConfig  # a line each
    | MaskedPredictionConfig
    | ReconstructionConfig
    | SpectralContrastConfig
    | Wav2vecConfig
)
