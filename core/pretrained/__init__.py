"""What others trained: the hub that models and data come from, folders of a model at one commit,
and the control tokens of a tokenizer."""
