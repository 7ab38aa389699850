"""What strategies of the field rank rows by: figures and vectors that cost a model's pass over
finished rows."""
