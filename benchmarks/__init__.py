"""Each figure of the documentation, one command each; see README.md."""
