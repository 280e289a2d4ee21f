"""Every pruner by its name in a study."""

from __future__ import annotations

from css_ray.study.pruning.base import Pruner
from css_ray.study.pruning.curves import ASHA, Hyperband, Median
from css_ray.study.pruning.optuna_pruner import Optuna
from css_ray.study.pruning.paired import Forecast, Paired

PRUNERS: dict[str, type[Pruner]] = {pruner.name: pruner for pruner in (Paired, Forecast, Median, ASHA, Hyperband, Optuna)}
