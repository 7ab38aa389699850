"""The HTML report of one recipe run: what was read (`sources`), drawn (`figures`, `tags`), embedded (`browser`) and put together (`page`)."""
