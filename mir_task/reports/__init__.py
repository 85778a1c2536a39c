"""What runs leave on disk, and what is made of it: side files, pictures, comparisons, leaderboards.

Reads and writes files only: needs no torch, and imports no more of this package than results, settings
and the YAML files of tasks.
"""
