"""One section of the page a file: its facts from the files of a run, ready for the template."""
