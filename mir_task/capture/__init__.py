"""From the forwards of any decoder-based model to the hidden states of vision and text tokens.

Knows PyTorch modules; imports nothing of this package but its errors, so no metric.
"""
