"""What predicts: an encoder of any timm network, the decoder that fits it, and the segmenter made of both."""

from css_ray.models.ensemble import Ensemble, Predictor
from css_ray.models.segmenter import ModelConfig, Segmenter, make_segmenter

__all__ = ["Ensemble", "ModelConfig", "Predictor", "Segmenter", "make_segmenter"]
