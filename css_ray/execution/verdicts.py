"""How the driver's judgement of a trial reaches the ranks that train it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from css_ray.execution.ray_internals import kv_get, kv_put


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What the driver thinks of the trials of one start of a study, for their workers to ask. It lies in Ray's own store."""

    start: str

    def say(self, trial: int, *, pruned: bool, after: int | None) -> None:
        """The trial was judged: after it finished the split `after`, or inside a split (None)."""
        kv_put(self._key(trial), json.dumps([pruned, after]).encode())

    def of(self, trial: int) -> tuple[bool, int | None]:
        """Whether the trial is pruned, and after which split it was judged, if that was the latest judgement."""
        said = kv_get(self._key(trial))
        pruned, after = json.loads(said) if said else (False, None)
        return pruned, after

    def _key(self, trial: int) -> str:
        return f"css-ray/verdicts/{self.start}/{trial}"
