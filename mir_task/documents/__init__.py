"""Which documents are measured, where they are read from, and what adapters are given of them.

Knows data sets and files, and no model; imports no more of this package than settings and errors.
"""
