# The image of css-ray for Kubernetes (cluster/kuberay.yaml), at the versions of constraints.txt.
#
#   docker build -t REGISTRY/css-ray:0.1.0 .
#
# The GPU's driver comes from the host (NVIDIA's device plugin); CUDA's libraries come with torch.
FROM python:3.11.14-slim-bookworm

# What KubeRay's probes and the containers' commands call.
RUN apt-get update && apt-get install --yes --no-install-recommends wget && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 ray
WORKDIR /opt/css-ray

# First what changes rarely: the pinned packages, without the code. `pip` reads the requirements from pyproject.toml.
COPY constraints.txt pyproject.toml README.md LICENSE ./
RUN mkdir css_ray cli && echo '__version__ = "0"' > css_ray/__init__.py && touch cli/__init__.py \
    && pip install --no-cache-dir --constraint constraints.txt . boto3 && pip uninstall --yes css-ray

COPY css_ray css_ray
COPY cli cli
COPY studies studies
RUN pip install --no-cache-dir --no-deps .

USER ray
ENV RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true PYTHONUNBUFFERED=1
