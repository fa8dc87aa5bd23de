"""Seconds and memory: of a step, of noise, of the start of a process, of an update of the training."""
