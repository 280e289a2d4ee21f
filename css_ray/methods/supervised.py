"""Labelled images only: the lower bound of every table."""

from __future__ import annotations

from css_ray.methods.base import Method
from css_ray.types import Batch, Clock, Losses


class Supervised(Method):
    """The supervised loss alone; the student is evaluated."""

    name = "supervised"
    needs_unlabelled = False

    def forward(self, batch: Batch, clock: Clock) -> Losses:
        prediction = self.student(self.labelled_colours(batch.labelled_images, strong=True))
        return Losses(terms={"sup": self.supervised(prediction, batch.labels)})
