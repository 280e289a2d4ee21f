"""css-ray: semi-supervised segmentation studies over data splits, on a laptop or a Ray cluster."""

__version__ = "0.1.0"
