"""The second study: three decoders, one of them with real weights."""
