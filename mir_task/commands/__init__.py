"""The command `mir-task`; each of its parts loads what it needs when it runs.

May import everything.
"""
