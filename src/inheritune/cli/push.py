"""The command that sends a target to the Hub."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from inheritune.cli.console import Debug, Json, print_json, print_text, progress, reported, say

__all__ = ["push"]


def push(
    path: Annotated[Path, typer.Argument(metavar="RUN|TARGET", help="A run, or its target.")],
    repo_id: Annotated[str, typer.Option("--repo-id", metavar="ID", help="owner/name.")],
    public: Annotated[
        bool, typer.Option("--public", help="For everybody; private otherwise.")
    ] = False,
    licence: Annotated[
        str | None,
        typer.Option("--license", help="As the Hub names it, such as apache-2.0."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print files and card; send nothing.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Send a target to the Hugging Face Hub: verified first, private, the card last."""
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
        seen = "private" if done["private"] else "public"
        say(f"{done['url']} ({seen}): {len(done['files'])} files, licence {done['licence']}.")
        say(f'next: AutoModelForCausalLM.from_pretrained("{done["repo"]}")')
