"""Optimizers of numbers: torch autograd where there is a gradient, estimates where there is none."""
