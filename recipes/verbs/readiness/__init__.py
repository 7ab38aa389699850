"""Is a machine ready for a recipe: packages, models, memory, disk."""
