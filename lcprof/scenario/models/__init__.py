"""Models: any Hugging Face config.json, the catalog, and models written out in a scenario."""

from lcprof.scenario.models.catalog import ModelCard, load_model, model_card, model_names
from lcprof.scenario.models.inline import read_inline
from lcprof.scenario.models.read import read_config

__all__ = ["ModelCard", "load_model", "model_card", "model_names", "read_config", "read_inline"]
