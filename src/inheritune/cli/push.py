"""Define the command push, which uploads a target to the Hub."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from inheritune.cli.console import Debug, Json, print_json, print_text, progress, reported, say


def push(
    path: Annotated[
        Path, typer.Argument(metavar="RUN|TARGET", help="Run, or its target directory.")
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
        from inheritune.publishing.push import pack
        from inheritune.publishing.push import push as send
        from inheritune.reporting.quantities import data_size

        parcel = pack(path, licence, public, repo_id)
        if dry_run:
            if as_json:
                print_json(
                    {
                        "repo": repo_id,
                        "private": not public,
                        "licence": parcel.licence,
                        "files": parcel.files,
                        "card": parcel.card,
                    }
                )
                return
            for file in parcel.files:
                say(f"  {file['path']}  {data_size(file['bytes'])}")
            print_text(parcel.card)
            options = (" --public" if public else "") + (
                f" --license {quote(licence)}" if licence else ""
            )
            say(f"next: inheritune push {quote(str(path))} --repo-id {quote(repo_id)}{options}")
            return
        with progress() as on_progress:
            done = send(parcel, repo_id, public, on_progress)
        if as_json:
            print_json(done)
            return
        visibility = "private" if done["private"] else "public"
        say(f"{done['url']} ({visibility}): {len(done['files'])} files, licence {done['licence']}.")
        say(f'next: AutoModelForCausalLM.from_pretrained("{done["repo"]}")')
