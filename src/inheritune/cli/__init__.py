"""Read the command line, call the library, talk to the terminal."""
