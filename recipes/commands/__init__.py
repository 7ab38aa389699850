"""The verbs of `magpie` by the groups of its help: one function a verb, everything heavy imported
inside it."""
