"""One MLflow run a build, delivered from what is on disk. See `tracking.py` first."""
