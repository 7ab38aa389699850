"""Synthesis, as a recipe states it: models, rows, tags. Imports pydantic only."""
