"""Arms that are other people's data, other recipes' selections, and mixtures of arms and data."""
