# The image of css-ray for Kubernetes (cluster/kuberay.yaml), at the versions of constraints.txt.
#
#   docker build -t REGISTRY/css-ray:0.1.0 .
#
# The GPU's driver comes from the host (NVIDIA's device plugin); CUDA's libraries come with torch.
FROM python:3.11.14-slim-bookworm

# What KubeRay's probes call.
RUN apt-get update && apt-get install --yes --no-install-recommends wget && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 ray
WORKDIR /opt/css-ray

# First what changes rarely: the pinned packages, without the code, so that a change of the code does not install torch anew.
# Those of the head as well: one image serves all pods.
COPY constraints.txt pyproject.toml ./
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    print(*project['dependencies'], *project['optional-dependencies']['head'], sep='\n')" > requirements.txt \
    && pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt

COPY README.md LICENSE ./
COPY css_ray css_ray
COPY cli cli
COPY studies studies
COPY cluster/mlflow-auth.ini cluster/
RUN pip install --no-cache-dir --no-deps .

USER ray
ENV RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true PYTHONUNBUFFERED=1
