"""What is counted of a model's tokens, in two passes over them, and the meter that counts: `MIRMeter`.

Knows tensors of hidden states and the metric; knows neither models, nor the harness, nor how processes
are connected.
"""
