"""Documents through a model and into the statistics: one pass or several, on one process or several.

May import capture, documents, metric and statistics; knows no harness.
"""
