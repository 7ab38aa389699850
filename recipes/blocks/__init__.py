"""Blocks of a recipe that belong to no other floor, and the arms that a recipe has without writing
them."""
