"""Data: models, GPUs and calibrations, one YAML file each."""
