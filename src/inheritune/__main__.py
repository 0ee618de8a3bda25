"""Start the command line, as ``inheritune`` or ``python -m inheritune``."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C during its import ends it silently, too."""
    try:
        from inheritune.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
