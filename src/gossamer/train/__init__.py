"""Training a program: losses, schedule, checkpoints, and the loop."""
