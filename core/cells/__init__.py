"""What is under a column: the journals that finished cells go to at once, and the merging of parts
into few large ones."""
