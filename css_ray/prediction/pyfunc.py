"""How `mlflow.pyfunc.load_model` loads a model that was registered. MLflow calls it by name; it needs no MLflow itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from css_ray.prediction.model import TrainedModel
from css_ray.training.best import DESCRIPTION_FILE


class ClassMapModel:
    """uint8 RGB [B, H, W, 3] -> uint8 [B, H, W], as `TrainedModel.predict`; on a GPU if there is one."""

    def __init__(self, model: TrainedModel) -> None:
        self.model = model

    def predict(self, images: NDArray[np.uint8], params: Any = None) -> NDArray[np.uint8]:
        """Raises ValueError for images of another type or shape."""
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must be uint8 [B, H, W, 3], got {images.dtype} {list(images.shape)}")
        pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
        classes: NDArray[np.uint8] = self.model.predict(pixels).classes.cpu().numpy()
        return classes


def _load_pyfunc(data_path: str) -> ClassMapModel:
    folders = sorted(path.parent for path in Path(data_path).rglob(DESCRIPTION_FILE))
    return ClassMapModel(TrainedModel(folders, name=data_path, device="cuda" if torch.cuda.is_available() else "cpu"))
