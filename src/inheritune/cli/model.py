"""Define the commands on model directories: inherit, verify, convert."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from inheritune import api
from inheritune.cli.completion import models
from inheritune.cli.console import (
    Debug,
    Json,
    TextKeys,
    print_json,
    reported,
    say,
    text_with,
)
from inheritune.cli.next_step import command
from inheritune.errors import RecipeError, escape, listed
from inheritune.surgery.selection import FORMS, describe_selection, other_engines

ReferenceId = Annotated[
    str, typer.Argument(help="Hub id, model directory or embedded:demo.", autocompletion=models)
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub model.")]


def inherit(
    reference: ReferenceId,
    layers: Annotated[str, typer.Argument(help=f"Layers to keep: {FORMS}.")],
    out: Annotated[Path, typer.Argument(help="Model directory to write.")],
    revision: Revision = None,
    mode: Annotated[str | None, typer.Option(hidden=True)] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Cast the weights to fp32, bf16 or fp16.")
    ] = None,
    parts: Annotated[
        str,
        typer.Option(
            help="Parts to inherit: all; or, for ablations, attention, mlp, attention+mlp (without "
            "norms), first-half, layers-only, outer-only, paper-code-gpt2, paper-code-llama."
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
        bool, typer.Option("--sha256", help="Also record SHA-256 digests; slower.")
    ] = False,
    repair: Annotated[
        str,
        typer.Option(
            help="Fit layers at the cut to the reference by least squares, with no training: "
            "sequential, linear, scale or none. Needs --text."
        ),
    ] = "none",
    text: Annotated[
        str | None,
        typer.Option(
            help="Training text, as data.source of a recipe, for --repair and for layers that are "
            "chosen by scores: block, greedy, influence, angular, norm-ratio, auto."
        ),
    ] = None,
    text_keys: TextKeys = None,
    repair_tokens: Annotated[str, typer.Option(help="Tokens of it to fit on.")] = "32K",
    text_only: Annotated[
        bool,
        typer.Option(
            "--text-only", help="Take only the language model out of one that also reads images."
        ),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Cut a model to some of its layers and write it as a new model directory."""
    with reported(as_json, debug):
        from inheritune.system.strict_json import MODEL_FILE, read_json_object

        if mode not in (None, "copy"):
            raise RecipeError(
                f"--mode {escape(mode)} is no longer there.",
                "Leave it out: inherit always copies the weights it keeps.",
            )
        target = api.inherit(
            reference,
            layers,
            out,
            revision=revision,
            dtype=dtype,
            parts=parts,
            seed=seed,
            class_check=not (no_class_check or no_gate),
            sha256=sha256,
            repair=repair,
            text=text_with(text, text_keys),
            repair_tokens=repair_tokens,
            text_only=text_only,
        )
        record = read_json_object(target.path / "inherit.json", MODEL_FILE, "the record")
        kept, total = record["layer_map"], record["reference"]["layers"]
        if as_json:
            size = sum(tensor.size for tensor in target.tensors.values())
            print_json(
                {"target": str(out), "layers": len(kept)}
                | {"layer_map": kept, "reference_layers": total}
                | {"params": target.params, "bytes": size}
                | {key: record[key] for key in ("config_edits", "check", "repair") if key in record}
            )
            return
        for edit in record["config_edits"]:
            changed = f"{_short(edit['before'])} -> {_short(edit['after'])}"
            say(f"  {escape(edit['key'])}: {changed}, {edit['reason']}")
        if unused := record["unused_tensors"]:
            say(f"  {len(unused)} tensors are not used by the class, such as {escape(unused[0])}")
        if elsewhere := other_engines(record.get("by_number", ())):
            say(f"warning: {elsewhere}")
        if left := record.get("left_behind"):
            say(f"  left behind: {listed(left)}")
        if fresh := record["fresh_tensors"]:
            seed = record["seed"]
            say(f"  {len(fresh)} tensors are freshly initialised by the class with seed {seed}")
        if "repair" in record:
            _say_repair(record["repair"])
        parameters = f"{target.params:,} parameters"
        say(f"{out}: {describe_selection(kept)} of {total}, {parameters}; {record['check']}.")
        commit = record["reference"]["revision"]
        say(f"next: {command('verify', out, reference=reference, revision=commit)}")


def _say_repair(repair: Mapping[str, Any]) -> None:
    for entry in (entry for entry in repair["layers"] if entry["tensors"]):
        say(
            f"  layer {entry['layer']}: repaired, {entry['error']:.0%} of the error is left on the "
            "windows that it was fitted on"
        )
    # Trials are the cut as it is, then one for each ridge: KL to the reference, held-out windows.
    trials = {trial["ridge"]: trial["kl"] for trial in repair["trials"]}
    if not trials:
        return
    cut, ridge = trials[None], repair["ridge"]
    if ridge is None:
        say(f"  unchanged: no ridge beats the cut on held-out windows (KL {cut:.4f})")
    else:
        say(f"  ridge {ridge:g}: KL {cut:.4f} -> {trials[ridge]:.4f} on held-out windows")


def _short(value: object) -> str:
    return "nothing" if value is None else escape(value, 40)


def verify(
    path: Annotated[
        Path,
        typer.Argument(
            help="Model directory, token directory, checkpoint or run to verify.",
            autocompletion=models,
        ),
    ],
    reference: Annotated[
        str | None, typer.Option(help="Hub id or directory of the model that it was cut from.")
    ] = None,
    revision: Revision = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Verify a model, tokens, a checkpoint or a run: bytes, config, layers and outputs."""
    with reported(as_json, debug):

        def show(finding: api.Finding) -> None:
            if not as_json:
                say(f"{'ok' if finding.proven else '--'}  {finding.part:<11}{finding.text}")

        result = api.verify(path, reference, revision=revision, on_finding=show, progress=False)
        if as_json:
            print_json([asdict(finding) for finding in result.findings])
        else:
            loaders = [finding.loader for finding in result.findings if finding.loader]
            say(f"next: {_next_of(path, result.kind, loaders)}")


def _next_of(path: Path, kind: str, loaders: list[str]) -> str:
    if kind == "run" and (path / "target").is_dir():
        return command("report", path)
    model = path / "model" if kind == "run" else path  # a training without a recipe has one
    if kind == "model" or (kind == "run" and model.is_dir()):
        if not loaders:
            return "load it with the code that it was made for"
        return f'{loaders[0]}.from_pretrained("{model}")'
    if kind == "tokens":
        return command("inspect", path)
    return "start its run again, which resumes where it stopped"


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="GGUF file, or directory with safetensors (quantised, or under other names), a "
            "LoRA adapter, or pytorch_model*.bin files."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Model directory to write.")],
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Of dequantised weights: fp32, bf16 or fp16; else the config's, and of a GGUF "
            "file the narrowest that loses nothing (fp32 for quantised ones)."
        ),
    ] = None,
    config_from: Annotated[
        str | None,
        typer.Option(
            help="Hub id or directory of the model that a GGUF file was made from; its config and "
            "tokenizer are then taken."
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="Keep only these layers of safetensors, as for inherit."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Hub id or directory of the model that a LoRA adapter is merged into."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Convert a model in another format to a directory with plain safetensors.

    Weights of GGUF, fp8, MXFP4 and bitsandbytes are dequantised, a LoRA adapter is merged into its
    base, names that a wrapper added are taken off. This is the only command that reads a pickle:
    weights only, in a process that has no network and can write only to OUT. Convert only what you
    trust.
    """
    with reported(as_json, debug):
        done = api.convert(
            source, out, dtype=dtype, config_from=config_from, layers=layers, base=base
        )
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
                    "quantisation": done.quantisation.as_json() if done.quantisation else None,
                }
            )
            return
        if done.base:
            say(f"  merged into {done.base}")
        for name, reason in done.dropped.items():
            say(f"  left out {name}: {reason}")
        for warning in done.warnings:
            say(f"warning: {warning}")
        limits = ", ".join(name for name, granted in done.confinement.items() if granted)
        how = f"; confined by {limits}" if limits else ""
        if done.tokenizer and not limits:
            how = f"; tokenizer {done.tokenizer}"
        say(f"{out}: {done.model.params:,} parameters; {done.check}{how}.")
        say(f"next: {command('plan', out)}")
