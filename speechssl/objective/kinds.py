"""All objectives, of which ``kind`` in a configuration chooses one."""

from speechssl.objective.apc import ApcConfig
from speechssl.objective.best_rq import BestRqConfig
from speechssl.objective.byol import ByolConfig
from speechssl.objective.contrastive import ContrastiveConfig
from speechssl.objective.data2vec import Data2VecObjectiveConfig
from speechssl.objective.dinosr import DinoSRConfig
from speechssl.objective.masked_prediction import MaskedPredictionConfig
from speechssl.objective.reconstruction import ReconstructionConfig
from speechssl.objective.reversed_future import ReversedFutureConfig
from speechssl.objective.spectral_contrast import SpectralContrastConfig
from speechssl.objective.spidr import SpidRConfig
from speechssl.objective.wav2vec import Wav2vecConfig

AnyObjective = (
    ApcConfig  # a line each
    | BestRqConfig
    | ByolConfig
    | ContrastiveConfig
    | Data2VecObjectiveConfig
    | DinoSRConfig
    | MaskedPredictionConfig
    | ReconstructionConfig
    | ReversedFutureConfig
    | SpectralContrastConfig
    | SpidRConfig
    | Wav2vecConfig
)
