"""The commands: reading the command line and talking to the terminal."""
