"""What a recipe would do, cost and find, said before any of it is paid for."""
