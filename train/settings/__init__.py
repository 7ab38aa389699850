"""What a training is given: the arguments of the trainer, of the engine and of the machine, and the
checks of all of them before anything runs."""
