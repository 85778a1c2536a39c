"""The metric: hidden states in, numbers out.

Knows tensors only; imports nothing of this package but its errors and results.
"""
