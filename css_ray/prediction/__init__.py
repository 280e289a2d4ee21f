"""What trained networks are for: masks of new images, and files that other programs run. Knows neither studies nor MLflow."""

from css_ray.prediction.folder import Done, predict_folder
from css_ray.prediction.model import ClassMaps, Origin, TrainedModel

__all__ = ["ClassMaps", "Done", "Origin", "TrainedModel", "predict_folder"]
