"""Readers: from files and objects to tables."""

SIDE = 32
PIXELS = 3 * SIDE * SIDE
"""Numbers of a CIFAR-10 image: the red plane, the green, the blue, each line by line."""
