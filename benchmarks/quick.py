"""A handful of ratios in under three minutes, and what moved since the committed ones.

    python benchmarks/quick.py [--rounds 3] [--only KEY ...] [--write] [--note TEXT]

Everything runs in this process, the two sides of a ratio in turn; nothing is compiled. With one
thread (`OMP_NUM_THREADS=1`) the time of the processor counts, which other programs move less.
`--write` makes benchmarks/quick.json and docs/benchmarks.md anew. Ends with 1 where a ratio is
worse than the committed one.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import layer_scores
import numpy as np
import torch
import transformers
from measuring.ratios import Case, movement, page, verdict
from measuring.roofline import Roofline, clock, layer_weights, roofline
from measuring.table import machine, software
from training.plain_loop import random_batches
from training.shapes import Shape, config, without_dropout
from training.stream import random_stream, recipe_of

import inheritune
from inheritune.analysis.cut_scores import score_cuts
from inheritune.analysis.rank import attention_rank
from inheritune.recipe.training import Train
from inheritune.surgery.removal import without
from inheritune.system.processes import ALONE
from inheritune.system.signals import StopFlag
from inheritune.training.distillation import Distillation, FrozenReference
from inheritune.training.hardware import choose_settings
from inheritune.training.loss import TrainingObjective
from inheritune.training.optimizer import mean_and_clip
from inheritune.training.setup import TrainingSetup, make_setup
from inheritune.training.step import forward_backward
from inheritune.training.throughput import flops_per_token

HERE = Path(__file__).parent
TABLE, PAGE = HERE / "quick.json", HERE.parent / "docs" / "benchmarks.md"

SMALL = Shape("a GPT-2 of 4 layers", "gpt2", 8192, 4, 256, 4, 1024, 4, 256, True)
# Widths and vocabulary of SmolLM2-135M, a fifth of its layers; 2 of 3 are kept.
KEPT = Shape("a Llama of 4 layers", "llama", 49152, 4, 576, 9, 1536, 2, 512, True)
WHOLE = Shape("a Llama of 6 layers", "llama", 49152, 6, 576, 9, 1536, 2, 512, True)


def cases(limits: Roofline, scratch: Path) -> dict[str, Callable[[], Case]]:
    """Each ratio under its key, made when it is its turn."""
    plain = cache(partial(_setup, KEPT, scratch / "plain"))
    return {
        "share": lambda: _share(plain(), limits),
        "reference": lambda: _distillation(plain(), scratch),
        "chunks": _chunks,
        "defaults": lambda: _trainer(scratch),
        "rank": _rank,
        "removals": _removals,
        "inherit": lambda: _inherit(scratch),
    }


def _ratio(above: Callable[[], object], below: Callable[[], object]) -> Callable[[], float]:
    return lambda: _seconds(above) / _seconds(below)


def _seconds(call: Callable[[], object]) -> float:
    begin = clock()
    call()
    return clock() - begin


# -- training


def _share(plain: TrainingSetup, limits: Roofline) -> Case:
    flops = flops_per_token(plain.model, KEPT.length) * KEPT.tokens
    return Case(
        "share",
        "a training step, as a share of the limit, bf16's or fp32's, 49,152 rows",
        # Without units for bf16 the training computes in fp32, whose limit is then the higher one.
        lambda: flops / _seconds(partial(_step, plain)) / max(limits.bf16, limits.fp32),
        0.75,
        at_most=False,
    )


def _distillation(plain: TrainingSetup, scratch: Path) -> Case:
    learning = _setup(KEPT, scratch / "learning", _reference())
    return Case(
        "reference",
        "a step with a reference of 6 layers / a plain one of 4, 49,152 rows",
        _ratio(partial(_step, learning), partial(_step, plain)),
        1.55,
    )


def _chunks() -> Case:
    model = _model(replace(KEPT, layers=1))
    whole, chunks = (partial(_pass, TrainingObjective(model, avoids)) for avoids in (False, True))
    return Case(
        "chunks",
        "forward and backward pass of a layer, loss in chunks / from whole logits, 49,152 rows",
        _ratio(chunks, whole),
        1.05,
        remark="1.03, 1.05 and 1.07 in three runs: at the goal. By arithmetic, chunks add the "
        "sum of the head's gradient in fp32: 450 MB of memory traffic, 13 ms of about 500",
    )


def _trainer(scratch: Path) -> Case:
    return Case(
        "defaults",
        "a training step, transformers' defaults / ours, GPT-2 of 4 layers",
        _ratio(_defaults(SMALL), partial(_step, _setup(SMALL, scratch / "small"))),
        3.0,
        at_most=False,
        # A profile in fp32, without bf16 products (AVX2, one thread): products take 67 % of the
        # defaults' step and 84 % of ours, dropout and other elementwise work 19 % of theirs.
        remark="nothing compiled; `benchmarks/train.py` has whole programs. Where a processor has "
        "bf16 2.2 times as fast as fp32, 2.16 was measured; where 4 times, 3.2; without bf16, as "
        "both compute in fp32, 1.2",
    )


def _recipe(shape: Shape) -> Train:
    return recipe_of(shape, {"compile": "off"})


def _model(shape: Shape) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(without_dropout(shape))


def _setup(shape: Shape, folder: Path, reference: Distillation | None = None) -> TrainingSetup:
    folder.mkdir(parents=True)
    recipe, stream = _recipe(shape), random_stream(shape, folder)
    settings = choose_settings(recipe, planned_flops=0)
    return make_setup(_model(shape), recipe, settings, stream, ALONE, reference)


def _reference() -> Distillation:
    settings = choose_settings(_recipe(WHOLE), planned_flops=0)
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    return Distillation(FrozenReference(_model(WHOLE).to(dtype), settings, 1.0), alpha=0.0)


def _step(setup: TrainingSetup) -> None:
    sums = forward_backward(setup, 0, 0, StopFlag(), save_due=False)
    mean_and_clip(setup.params, sums.targets, 1.0)
    setup.optimizer.step()
    setup.optimizer.zero_grad(set_to_none=True)


def _pass(objective: TrainingObjective) -> None:
    ids = random_batches(KEPT, 1)[: KEPT.batch]
    with choose_settings(_recipe(KEPT), planned_flops=0).autocast():
        loss = objective(ids[:, :-1], ids[:, 1:])
    loss.backward()
    objective.zero_grad(set_to_none=True)


def _defaults(shape: Shape) -> Callable[[], None]:
    """The step that transformers.Trainer takes if nobody tells it more."""
    model = transformers.AutoModelForCausalLM.from_config(config(shape)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    ids = random_batches(shape, 0)[: shape.batch]

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


# -- choosing layers and cutting


def _rank() -> Case:
    # As of a trained model: most weight on the first token, the rest by a few directions.
    torch.manual_seed(0)
    scores = torch.randn(24, 256, 8) @ torch.randn(24, 8, 256)
    scores[:, :, 0] += torch.linspace(0, 12, 24)[:, None]
    attention = scores.masked_fill(torch.ones(256, 256).triu(1).bool(), -torch.inf).softmax(-1)
    return Case(
        "rank",
        "svdvals / our ranks of the same attention, T 256, weights as if trained",
        _ratio(partial(torch.linalg.svdvals, attention), partial(attention_rank, attention, [0.9])),
        3.0,
        at_most=False,
        remark="6 of 24 matrices are settled on 16 columns, 10 on 64; 8, of high rank or near the "
        "threshold, take all eigenvalues. With AVX-512 these are a third of the time, at 1.29 ms "
        "a matrix against svdvals' 2.76, three quarters of it LAPACK's tridiagonal form",
    )


def _removals() -> Case:
    layers = 6
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=192,
            intermediate_size=768,
            num_hidden_layers=layers,
            num_attention_heads=4,
            vocab_size=4096,
        )
    ).eval()
    ids = np.random.default_rng(0).integers(0, 4096, (4, 129))
    cuts = [without(layers, [layer]) for layer in range(layers)]
    return Case(
        "removals",
        "losses of all single removals / the least that they cost, 6 layers",
        _ratio(
            lambda: score_cuts(model, layers, ids, cuts),
            lambda: layer_scores.least(model, ids, layers),
        ),
        layer_scores.BOUND,
    )


def _inherit(scratch: Path) -> Case:
    whole, cut = scratch / "whole", scratch / "cut"
    _model(WHOLE).bfloat16().save_pretrained(whole)
    inherit = partial(inheritune.inherit, whole, 4, class_check=False, progress=False)
    inherit(cut)

    def seconds(make: Callable[[Path], object]) -> float:
        out = scratch / "out"
        begin = time.perf_counter()
        make(out)
        lasted = time.perf_counter() - begin
        shutil.rmtree(out)
        return lasted

    return Case(
        "inherit",
        "inherit, without imports and class check / a copy of what it writes, 0.1 GB",
        lambda: seconds(inherit) / seconds(partial(shutil.copytree, cut)),
        remark="the goal, 1.3, is that of the whole command on 1.2 GB: `benchmarks/inherit.py`",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", metavar="KEY", help="these ratios alone")
    parser.add_argument("--write", action="store_true", help="commit to what is measured now")
    parser.add_argument("--note", default="nothing else ran.", help="for the page, with --write")
    options = parser.parse_args()
    began = time.perf_counter()
    committed = json.loads(TABLE.read_text("utf-8")) if TABLE.exists() else {"rows": []}
    before = {each["key"]: each for each in committed["rows"]}
    print(f"{machine()}, {software(('inheritune', 'torch', 'transformers'))}", flush=True)
    rows = []
    with tempfile.TemporaryDirectory(prefix="quick-bench-") as name:
        limits = roofline(layer_weights(KEPT), KEPT.tokens, Path(name))
        print(limits.line(), flush=True)
        for key, make in cases(limits, Path(name)).items():
            if options.only and key not in options.only:
                continue
            case = make()
            now = case.measure(options.rounds)
            rows.append(now)
            spread = f"{now['median']:.2f} ({now['least']:.2f}-{now['most']:.2f})"
            moved = movement(now, before.get(key))
            print(f"{spread}  {moved}, goal {verdict(now)}: {case.title}", flush=True)
    print(f"{time.perf_counter() - began:.0f} s")
    if options.write:
        kept = {each["key"]: each for each in rows}
        rows = list((before | kept).values())
        table = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine(),
            "software": software(("inheritune", "torch", "transformers")),
            "note": options.note,
            "limits": limits.line(),
            "rows": rows,
        }
        TABLE.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", "utf-8")
        PAGE.write_text(page(table), "utf-8")
    raise SystemExit(any(movement(each, before.get(each["key"])) == "WORSE" for each in rows))


if __name__ == "__main__":
    main()
