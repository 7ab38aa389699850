"""What the benchmarks' projects do: their judge prompts, from the user's copies, and their
protocols, which a recipe may or may not follow."""
