"""What can be found wrong in a recipe before anything is spent: the files that it names, and its
settings of other libraries, judged by their own parsers in processes of their own."""
