"""css-ray: semi-supervised segmentation studies over data splits, on a laptop or a Ray cluster."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from css_ray.api import Study
    from css_ray.audience import Audience
    from css_ray.selection import load_model

__all__ = ["Audience", "Study", "__version__", "load_model"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # On use, since it needs torch: `import css_ray` alone stays cheap.
    if name == "Study":
        from css_ray.api import Study

        return Study
    if name == "Audience":
        from css_ray.audience import Audience

        return Audience
    if name == "load_model":
        from css_ray.selection import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
