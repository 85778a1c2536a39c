"""`python -m mir_task` is the command `mir-task`."""

from mir_task.commands.cli import main

main(prog_name="mir-task")
