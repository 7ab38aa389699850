"""What must run, why, and running it: the walk over a recipe's stages, one file a stage group.

May import the report and the schema, and every floor below; verbs and exchange import it.
"""
