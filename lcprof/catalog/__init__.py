"""Data: models, GPUs and calibrations, one YAML file each."""

from pathlib import Path

CATALOG = Path(__file__).parent
