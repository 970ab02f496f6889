"""`hf-ext`: one command, a file for each subcommand. Torch is loaded by a subcommand that needs it, not before."""
