"""What a crop makes of the images of a data set."""

from __future__ import annotations

from .shards import DataSet


def crop_warning(dataset: DataSet, crop: int) -> str | None:
    """A sentence on a crop that is larger than every training image, in both sides; None if one reaches it. Decodes nothing."""
    heights, widths = zip(*dataset.train.sizes, strict=True)
    height, width = max(heights), max(widths)
    if crop <= max(height, width):
        return None
    padding = int(100 * (1 - height * width / crop**2))  # of the largest image; the others leave more
    return (
        f"data.crop: {crop} is larger than every training image of {dataset.info.name} (at most {width}x{height}, width x "
        f"height), so at least {padding} % of a crop is padding unless the image is scaled up; use {min(height, width)} or "
        "less, or prepare larger images"
    )
