"""Define the command push, which uploads a target to the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from inheritune import api
from inheritune.cli.completion import runs
from inheritune.cli.console import Debug, Json, print_json, print_text, reported, say
from inheritune.cli.next_step import command


def push(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|TARGET", autocompletion=runs, help="Run, or its target directory."
        ),
    ],
    repo_id: Annotated[
        str, typer.Option("--repo-id", metavar="ID", help="Hub repository, as owner/name.")
    ],
    public: Annotated[
        bool, typer.Option("--public", help="Make the repository public; default: private.")
    ] = False,
    licence: Annotated[
        str | None,
        typer.Option(
            "--license",
            help="Licence, as the Hub names it, such as apache-2.0; default: the reference's.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the files and the card without uploading.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Verify a target and upload it to the Hugging Face Hub, privately by default."""
    with reported(as_json, debug):
        from inheritune.reporting.quantities import data_size

        result = api.push(path, repo_id, public=public, licence=licence, dry_run=dry_run)
        if as_json:
            print_json(result)
        elif dry_run:
            for file in result["files"]:
                say(f"  {file['path']}  {data_size(file['bytes'])}")
            print_text(result["card"])
            upload = command("push", path, repo_id=repo_id, public=public, license=licence)
            say(f"next: {upload}")
        else:
            visibility = "private" if result["private"] else "public"
            sent = f"{len(result['files'])} files, licence {result['licence']}"
            say(f"{result['url']} ({visibility}): {sent}.")
            say(f'next: AutoModelForCausalLM.from_pretrained("{result["repo"]}")')
