"""Checkpoints larger than memory: read, compressed and read back tensor by tensor, block by block."""
