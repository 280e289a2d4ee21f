"""Which trials of a search are not worth their remaining steps: rules that are asked at each evaluation and after each split.

Inside a split, `median`, `asha` and `hyperband` compare runs at equal steps of the same split. Across splits, `paired` compares
a trial with the best one on the splits that both have; `forecast` applies the same rule inside the splits as well:
docs/pruning.md derives both and shows what they guarantee. `optuna` asks any pruner of Optuna. A verdict depends on the
`PruningContext` and on nothing else, so that a resumed study reaches the same verdicts.
"""

from css_ray.study.pruning.base import Pruner, PruningContext, Verdict
from css_ray.study.pruning.paired import LEADERS
from css_ray.study.pruning.registry import PRUNERS

__all__ = ["LEADERS", "PRUNERS", "Pruner", "PruningContext", "Verdict"]
