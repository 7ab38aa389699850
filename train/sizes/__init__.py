"""What a training needs before it starts and how fast it goes: shapes of a base, memory a device,
disk, FLOPs and MFU. Torch is imported only where activations are traced."""
