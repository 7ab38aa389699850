"""Verbs about comparisons: of anyone's result files, of finished recipes, of a pilot with its full
run; labels by people."""
