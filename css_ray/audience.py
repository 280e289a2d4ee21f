"""Who watches a study while it runs."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from css_ray.api import Study
    from css_ray.events import Event
    from css_ray.study.driver import Outcome


class Audience:
    """Who watches a study while it runs, on the driver's thread. Override what you want to see; nothing is needed.

    A search that is confirmed is two studies, one after the other.
    """

    def study_begins(self, study: Study) -> None:
        """The study is checked, and is about to begin or to be resumed."""

    def event(self, event: Event) -> None:
        """Something happened, and is in the journal."""

    def study_ended(self, study: Study, outcome: Outcome) -> None:
        """The study ended, however it did; `on_finish` and the webhook come next."""

    def warn(self, text: str) -> None:
        """Something is valid, but probably a mistake; or a part that the study can do without has failed."""
        warnings.warn(text, stacklevel=6)  # who called `run` or `resume`
