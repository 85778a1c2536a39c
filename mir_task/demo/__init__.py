"""What `mir_demo` measures and measures it on: 100 documents and a small random checkpoint."""
