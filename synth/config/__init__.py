"""Synthesis, as a recipe states it: models, how each tag is measured, what is drawn. Imports
pydantic only."""

from synth.config.models import STRICT, ModelConfig, Verbatim
from synth.config.rows import FirstTokenConfig, GridCell, ImportConfig, SystemPromptConfig
from synth.config.synthesis import PreferencesConfig, SynthConfig
from synth.config.tags import (
    BaseConfig,
    DecontaminateConfig,
    MinhashConfig,
    NeighborsConfig,
    SafetyConfig,
    TagConfig,
    TagsConfig,
)

__all__ = [
    "STRICT",
    "BaseConfig",
    "DecontaminateConfig",
    "FirstTokenConfig",
    "GridCell",
    "ImportConfig",
    "MinhashConfig",
    "ModelConfig",
    "NeighborsConfig",
    "PreferencesConfig",
    "SafetyConfig",
    "SynthConfig",
    "SystemPromptConfig",
    "TagConfig",
    "TagsConfig",
    "Verbatim",
]
