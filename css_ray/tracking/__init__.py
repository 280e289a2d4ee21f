"""MLflow: written from a study's journal, read back as records, rebuilt at any time. The only home of MLflow."""

from css_ray.tracking.client import ARTIFACTS, DATABASE, check, default_artifacts, default_uri
from css_ray.tracking.pages import study_pages
from css_ray.tracking.projection import Projection
from css_ray.tracking.reading import log_tables, read_records
from css_ray.tracking.registry import Registered, fetch_model, register_model
from css_ray.tracking.server import Server, start_server
from css_ray.tracking.tracker import SyncSummary, Tracker, sync

__all__ = [
    "ARTIFACTS",
    "DATABASE",
    "Projection",
    "Registered",
    "Server",
    "SyncSummary",
    "Tracker",
    "check",
    "default_artifacts",
    "default_uri",
    "fetch_model",
    "log_tables",
    "read_records",
    "register_model",
    "start_server",
    "study_pages",
    "sync",
]
