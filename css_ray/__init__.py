"""css-ray: semi-supervised segmentation studies over data splits, on a laptop or a Ray cluster."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from css_ray.api import Study

__all__ = ["Study", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # On use, since it needs torch: `import css_ray` alone stays cheap.
    if name == "Study":
        from css_ray.api import Study

        return Study
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
