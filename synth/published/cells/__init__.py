"""What of a row's cells follows from others, and which cells and rows failed."""
