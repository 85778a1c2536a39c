"""Studies of what MIR tells, each with its results beside its code."""
