"""Entry point of ``python -m inheritune``."""

from inheritune.cli import main

if __name__ == "__main__":
    main()
