"""What a comparison says: the answer, the arms in order, their seeds, where they differ most."""
