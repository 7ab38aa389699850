"""A selection as a training reads it: token ids, labels and packs, and what was cut."""
