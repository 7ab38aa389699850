"""What `magpie VERB` does where it is not a stage, one file a verb, and what a person sees.

May import everything below the command line.
"""
