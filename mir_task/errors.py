"""The one exception of this package."""


class MIRError(ValueError):
    """MIR cannot be measured; the message names the cause and the way out."""
