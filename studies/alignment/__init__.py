"""Does MIR tell what it claims? Small vision-language models trained from scratch; see README.md."""
