"""The commands on model directories: plan, inherit, verify, convert."""

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from inheritune.cli.console import (
    DEFAULT_RUNS,
    Debug,
    Json,
    Runs,
    Scale,
    Sets,
    print_json,
    progress,
    reported,
    say,
)
from inheritune.errors import RecipeError, escape
from inheritune.surgery.selection import FORMS
from inheritune.system.progress import silent

if TYPE_CHECKING:
    from inheritune.verification.run_model import Finding

__all__ = ["convert", "inherit", "plan", "verify"]

ReferenceId = Annotated[str, typer.Argument(help="Hub id, model directory, or embedded:demo.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")]


def inherit(
    reference: ReferenceId,
    layers: Annotated[
        str,
        typer.Argument(help=FORMS + "."),
    ],
    out: Annotated[Path, typer.Argument(help="The model directory to write.")],
    revision: Revision = None,
    mode: Annotated[str | None, typer.Option(hidden=True)] = None,
    dtype: Annotated[str | None, typer.Option(help="Cast to fp32, bf16 or fp16.")] = None,
    parts: Annotated[
        str,
        typer.Option(
            help="all, or for ablations attention, mlp, attention+mlp (no norms), first-half, "
            "layers-only, outer-only, paper-code-gpt2, paper-code-llama."
        ),
    ] = "all",
    seed: Annotated[int, typer.Option(help="Seed for the freshly initialised parts.")] = 0,
    no_class_check: Annotated[
        bool,
        typer.Option(
            "--no-class-check",
            help="Skip the check against the transformers class (noted in inherit.json).",
        ),
    ] = False,
    no_gate: Annotated[bool, typer.Option("--no-gate", hidden=True)] = False,
    sha256: Annotated[
        bool, typer.Option("--sha256", help="Record SHA-256 digests, too; slower.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Cut a model to some of its layers and write it as a new model directory."""
    with reported(as_json, debug):
        from inheritune.model_files.directory import open_model
        from inheritune.surgery.cut import Options
        from inheritune.surgery.cut import inherit as inherit_layers
        from inheritune.surgery.selection import LayerFacts, choose_layers, describe_selection
        from inheritune.system.strict_json import MODEL_FILE, read_json_object

        if mode not in (None, "copy"):
            raise RecipeError(
                f"--mode {escape(mode)} is no longer there.",
                "Leave it out: inherit always copies the weights it keeps.",
            )
        source = open_model(reference, revision, whole=False)
        kept = choose_layers(layers, LayerFacts(source.layers))
        options = Options(
            dtype=dtype,
            parts=parts,
            seed=seed,
            class_check=not (no_class_check or no_gate),
            sha256=sha256,
        )
        with progress() if source.remote else nullcontext(silent) as listen:
            target = inherit_layers(source, kept, out, options, listen)
        record = read_json_object(target.path / "inherit.json", MODEL_FILE, "the record")
        if as_json:
            print_json(
                {
                    "target": str(out),
                    "layers": len(kept),
                    "layer_map": list(kept),
                    "reference_layers": source.layers,
                    "params": target.params,
                    "bytes": sum(tensor.size for tensor in target.tensors.values()),
                    "config_edits": record["config_edits"],
                    "check": record["check"],
                }
            )
            return
        for edit in record["config_edits"]:
            changed = f"{_short(edit['before'])} -> {_short(edit['after'])}"
            say(f"  {escape(edit['key'])}: {changed}, {edit['reason']}")
        if unused := record["unused_tensors"]:
            say(f"  {len(unused)} tensors are of no use to the class, such as {escape(unused[0])}")
        if record["fresh_tensors"]:
            say(
                f"  {len(record['fresh_tensors'])} tensors are fresh, by the class with seed {seed}"
            )
        say(
            f"{out}: {describe_selection(kept)} of {source.layers}, {target.params:,} parameters; "
            f"{record['check']}."
        )
        same = quote(reference) + (f" --revision {source.revision}" if source.revision else "")
        say(f"next: inheritune verify {quote(str(out))} --reference {same}")


def _short(value: object) -> str:
    return "nothing" if value is None else escape(value, 40)


def verify(
    path: Annotated[
        Path, typer.Argument(help="A model directory, a token directory, a checkpoint or a run.")
    ],
    reference: Annotated[
        str | None, typer.Option(help="What the model was cut from: Hub id or model directory.")
    ] = None,
    revision: Revision = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Prove a model, tokens, a checkpoint or a run: bytes, config, layers, what it computes."""
    with reported(as_json, debug):
        from inheritune.model_files.directory import open_model
        from inheritune.verification.directory import verify as verify_directory

        source = None if reference is None else open_model(reference, revision, whole=False)

        def show(finding: "Finding") -> None:
            if not as_json:
                say(f"{'ok' if finding.proven else '--'}  {finding.part:<11}{finding.text}")

        result = verify_directory(path, source, show)
        if as_json:
            print_json([asdict(finding) for finding in result.findings])
        else:
            say(f"next: {_next_of(path, result.kind)}")


def _next_of(path: Path, kind: str) -> str:
    if kind == "run" and (path / "target").is_dir():
        return f"inheritune report {quote(str(path))}"
    model = path / "model" if kind == "run" else path  # of a training without a recipe
    if kind == "model" or (kind == "run" and model.is_dir()):
        return f'AutoModelForCausalLM.from_pretrained("{model}")'
    if kind == "tokens":
        return f"inheritune inspect {quote(str(path))}"
    return "start its run again, which goes on where it was stopped"


def plan(
    what: Annotated[
        str, typer.Argument(metavar="REFERENCE|RECIPE", help="A model as for inherit, or a recipe.")
    ],
    layers: Annotated[
        str | None, typer.Argument(help="One cut from close up; as for inherit.")
    ] = None,
    revision: Revision = None,
    tokens: Annotated[
        str | None, typer.Option(help="Training tokens to estimate for, such as 1B.")
    ] = None,
    seq_len: Annotated[int | None, typer.Option(min=1, help="Tokens of a sequence.")] = None,
    device: Annotated[str | None, typer.Option(help="h100, a100, rtx4090, cpu, ...")] = None,
    devices: Annotated[int, typer.Option(help="How many of them.")] = 1,
    mfu: Annotated[float, typer.Option(help="Share of the device's peak that is reached.")] = 0.4,
    rate: Annotated[float | None, typer.Option(help="Dollars for an hour of one device.")] = None,
    sets: Sets = None,
    scale: Scale = None,
    runs: Runs = DEFAULT_RUNS,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Tell what fewer layers, or a whole recipe, would take; run nothing."""
    with reported(as_json, debug):
        from inheritune.cli import plan_text as lines
        from inheritune.system.devices import Speed, choose_device

        speed = Speed(choose_device(device), devices, mfu, rate) if device else None
        if what.endswith((".yaml", ".yml")) and not Path(what).is_dir():
            from inheritune.planning.recipe_plan import plan_recipe
            from inheritune.recipe.load import read_recipe

            wanted = read_recipe(Path(what), sets or [])
            if scale is not None:
                from inheritune.planning.scale import scale_file

                wanted = scale_file(wanted, scale)
                say(wanted.scaled)
            recipe = wanted.recipe
            plan_of_recipe = plan_recipe(recipe, runs / recipe.name, speed)
            found, page = plan_of_recipe.as_json(), lines.recipe_page(plan_of_recipe)
            next_command = f"inheritune run {quote(what)}"
            next_command += f" --scale {scale:g}" if scale is not None else ""
        else:
            from inheritune.model_files.directory import open_model
            from inheritune.planning.candidates import Budget, list_candidates, look_at

            budget = Budget(seq_len, None if tokens is None else _amount(tokens), speed)
            model = open_model(what, revision, whole=False)
            if layers is None:
                table = list_candidates(model, budget)
                found, page = table.as_json(), lines.candidates_page(table)
                next_command = f"inheritune plan {quote(what)} {max(1, model.layers // 2)}"
            else:
                detail = look_at(model, layers, budget)
                found, page = detail.as_json(), lines.detail_page(detail)
                next_command = f"inheritune inherit {quote(what)} {layers} OUT"
        if as_json:
            print_json(found)
        else:
            from inheritune.cli.terminal import show_page

            show_page(Console(highlight=False, markup=False), page)
            say(f"next: {next_command}")


def _amount(text: str) -> int:
    from inheritune.recipe.values import parse_amount

    amount = int(text) if text.isdecimal() and len(text) < 19 else parse_amount(text.strip())
    if not isinstance(amount, int) or amount < 1:
        raise RecipeError(f"--tokens {text!r} is no amount.", "Write it like 500M or 1B.")
    return amount


def convert(
    source: Annotated[Path, typer.Argument(help="Local directory with pytorch_model*.bin.")],
    out: Annotated[Path, typer.Argument(help="The model directory to write.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Turn a PyTorch-format checkpoint into a safetensors model directory.

    The one command that reads a pickle: weights only, in a process without network that can write
    nowhere but to OUT. Convert only what you trust.
    """
    with reported(as_json, debug):
        from inheritune.conversion.convert import convert as convert_model

        done = convert_model(source, out)
        if as_json:
            print_json(
                {
                    "target": str(out),
                    "params": done.model.params,
                    "check": done.check,
                    "tokenizer": done.tokenizer,
                    "dropped": dict(done.dropped),
                    "warnings": done.warnings,
                    "confinement": dict(done.confinement),
                }
            )
            return
        for name, reason in done.dropped.items():
            say(f"  left out {name}: {reason}")
        for warning in done.warnings:
            say(f"warning: {warning}")
        held = ", ".join(name for name, granted in done.confinement.items() if granted)
        say(f"{out}: {done.model.params:,} parameters; {done.check}; read under {held}.")
        say(f"next: inheritune plan {quote(str(out))}")
