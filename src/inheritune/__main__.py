"""Where every command begins: ``inheritune`` and ``python -m inheritune``."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; Ctrl-C while it is being imported ends it without a word, too."""
    try:
        from inheritune.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
