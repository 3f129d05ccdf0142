"""The command line: what a shell says and shows."""
