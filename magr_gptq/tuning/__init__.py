"""Fitting what a finished checkpoint stores as numbers, scales, norms and biases, with its codes fixed."""
