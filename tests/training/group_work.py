"""What tests have several real processes do: `python group_work.py WORK FOLDER TOKENS`."""

import json
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from inheritune.data.tokens import TokenDirectory, open_tokens
from inheritune.errors import InherituneError, MachineError
from inheritune.evaluation.val_loss import measure_val_loss
from inheritune.recipe.schema import Recipe
from inheritune.recipe.training import Train
from inheritune.run_directory import Run
from inheritune.steps.distillation import open_distillation
from inheritune.steps.job import Job
from inheritune.steps.training_spec import TrainingSpec
from inheritune.steps.training_task import TrainingTask
from inheritune.system.processes import ALONE, Processes
from inheritune.system.progress import Listener, Progress, silent
from inheritune.system.signals import StopFlag
from inheritune.training import checkpoint as state
from inheritune.training import distillation as reference_module
from inheritune.training import fsdp, logit_cache
from inheritune.training import setup as setup_module
from inheritune.training.distillation import Distillation
from inheritune.training.fsdp import layer_modules, mesh_of, shard, sync_gradients
from inheritune.training.hardware import Settings
from inheritune.training.loop import train
from inheritune.training.loop_config import LoopConfig, LoopResult
from inheritune.training.loss import TrainingObjective
from inheritune.training.metrics import OnRow
from inheritune.training.process_group import join
from inheritune.training.setup import make_setup
from inheritune.training.step import forward_backward

FIELDS = {"tokens": 2560, "seq_len": 16, "batch_tokens": 128, "micro_batch": 2}
FIELDS |= {"learning_rate": 1e-2, "min_learning_rate": 1e-3, "warmup_tokens": 256}
INPUTS = {"seed": 0}


def recipe(**more: object) -> Train:
    """20 steps of 8 sequences of 16 tokens."""
    return Train.model_validate(FIELDS | {"eval_every": 640} | more)


def plain_settings(
    processes: Processes, precision: str = "fp32", shards: int | None = None, **more: object
) -> Settings:
    plain = {"device": "cpu", "precision": precision, "attention": "model", "compile": False}
    off = {"fused_gelu": False, "fused_optimizer": True, "keep_large_blocks": False}
    shards = shards or processes.size // processes.nodes
    return Settings(**plain, **off, processes=processes.size, shards=shards, **more)


def small_llama(tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return LlamaForCausalLM(LlamaConfig(vocab_size=320, **small, **heads, tie_word_embeddings=tied))


class Spy:
    """A stream of tokens that remembers which samples were asked for."""

    def __init__(self, stream: object) -> None:
        self.stream, self.asked = stream, []

    def num_samples(self, seq_len: int) -> int:
        return self.stream.num_samples(seq_len)

    def samples(self, ids: object, seq_len: int) -> object:
        self.asked += [int(number) for number in ids]
        return self.stream.samples(ids, seq_len)


def run_training(
    folder: Path,
    tokens: TokenDirectory,
    processes: Processes = ALONE,
    stop_after: int | None = None,
    stopping_rank: int = 0,
    on_row: OnRow | None = None,
    checkpoint: Path | None = None,
    heard: Listener = silent,
    distill: dict[str, object] | None = None,
    layout: dict[str, object] | None = None,
    start: Callable[[], LlamaForCausalLM] | None = None,
    **more: object,
) -> tuple[LlamaForCausalLM, LoopResult | None, list[int]]:
    """Train, or continue; asked to stop after a step, in one process only."""
    model, stop, spy = start or small_llama(), StopFlag(), Spy(tokens.train)
    train_recipe, begin = recipe(**more), {}
    settings = plain_settings(processes, **layout or {})

    def on_progress(progress: Progress) -> None:
        begin.setdefault("tokens", progress.done)
        heard(progress)
        if progress.done == (stop_after or -1) * 128 and processes.rank == stopping_rank:
            stop.signal_number = signal.SIGTERM

    def measure(model: torch.nn.Module) -> float:
        return measure_val_loss(model, tokens.val, 16, 4, stop, processes=processes).mean

    folder.mkdir(parents=True, exist_ok=True)
    config = LoopConfig(
        task="test",
        train=train_recipe,
        settings=settings,
        stream=spy,
        tokens=train_recipe.tokens,
        folder=folder,
        inputs=INPUTS,
        resume_from=checkpoint,
    )
    if distill is not None:
        made = distillation(train_recipe, distill, folder.parent, tokens, processes, settings)
        config = replace(config, distillation=made)
    try:
        trained = train(
            model,
            config,
            measure,
            stop,
            on_progress=on_progress,
            on_row=on_row,
            processes=processes,
        )
    except InherituneError as error:
        if error.exit_code != 75:
            raise
        trained = None
    return model, trained, spy.asked


def distillation(
    train_recipe: Train,
    distill: dict[str, object],
    folder: Path,
    tokens: TokenDirectory,
    processes: Processes,
    settings: Settings,
) -> Distillation:
    """As a variant's, from the reference that lies in the folder; shards of 30 samples."""
    logit_cache._SHARD_BYTES = 30 * 16 * 64 * 4
    fields = {"name": "test", "reference": {"model": "there"}, "data": {"source": "there"}}
    made = Recipe.model_validate(fields | {"train": train_recipe.model_dump()})
    job = Job(made, Run(folder), StopFlag(), silent, processes)
    spec = TrainingSpec(
        "kd",
        "fresh",
        2,
        train_recipe.tokens,
        distill=distill,
        reference_dir=f"{folder}/reference",
        reference_digest="digest",
    )
    return open_distillation(TrainingTask(job, spec, folder, tokens, {}), settings)


# -- one function for each kind of work


def gradients(folder: Path, tokens: TokenDirectory, processes: Processes) -> dict[str, object]:
    """Summed gradients of uneven masks, with and without reducing in every micro-batch."""
    torch.manual_seed(1)
    x, y = torch.randint(0, 320, (8, 16)), torch.randint(0, 320, (8, 16))
    y[torch.rand(8, 16) < torch.linspace(0, 0.9, 8)[:, None]] = -100
    results = {}
    mesh = mesh_of(processes, plain_settings(processes))
    for tied in (True, False):
        whole = small_llama(tied)
        root = TrainingObjective(whole, avoids_logits=False)
        root(x, y).backward()
        expected = {name: param.grad for name, param in whole.named_parameters()}
        for every in (True, False):
            model = small_llama(tied)
            root = TrainingObjective(model, avoids_logits=False)
            shard(root, model, mesh, bf16=False)
            each = 8 // processes.size
            mine = range(processes.rank * each, (processes.rank + 1) * each)
            for row in mine:
                sync_gradients(root, every or row == mine[-1])
                root(x[row : row + 1], y[row : row + 1]).backward()
            worst = 0.0
            for name, param in model.named_parameters():
                ours = param.grad.full_tensor()
                gap = (ours - expected[name]).norm() / expected[name].norm()
                worst = max(worst, float(gap))
            results[f"tied {tied}, every {every}"] = worst
    for how in ("recomputed", "compiled"):
        model = small_llama()
        if how == "recomputed":
            model.activation_checkpointing_enable({"use_reentrant": False})
        else:  # the tracing and the hooks, without the minutes of a real compiler
            for layer in layer_modules(model):
                layer.compile(backend="aot_eager")
        root = TrainingObjective(model.train(), avoids_logits=how == "compiled")
        shard(root, model, mesh, bf16=False)
        each = 8 // processes.size
        part = slice(processes.rank * each, (processes.rank + 1) * each)
        root(x[part], y[part]).backward()
        whole = small_llama()
        TrainingObjective(whole, avoids_logits=False)(x, y).backward()
        expected = {name: param.grad for name, param in whole.named_parameters()}
        results[how] = max(
            float((p.grad.full_tensor() - expected[n]).norm() / expected[n].norm())
            for n, p in model.named_parameters()
        )
    return results


def whole_training(folder: Path, tokens: TokenDirectory, processes: Processes) -> dict[str, object]:
    """20 steps, and 20 in which most weights are frozen; which samples this process saw."""
    _, trained, asked = run_training(folder / "pair", tokens, processes)
    run_training(folder / "part", tokens, processes, only=["last:1", "norms"])
    return {"asked": asked, "restarts": trained.restarts, "start": trained.start_val_loss}


def loaded_in_turn(
    folder: Path, tokens: TokenDirectory, processes: Processes
) -> dict[str, list[float]]:
    """20 steps from a model that each process loads; when it began, and when it had its share."""
    found = {}
    for name, distill in (("turns", None), ("turns-distilled", {})):
        times = found[name] = []

        def load(times: list[float] = times) -> LlamaForCausalLM:
            times.append(time.monotonic())
            time.sleep(0.2)
            return small_llama()

        def shared(*given: object, times: list[float] = times, **more: object) -> None:
            fsdp.shard(*given, **more)
            times.append(time.monotonic())

        setup_module.shard = shared
        on_host = {"layout": {"begins_on_host": True}, "distill": distill}
        try:
            run_training(folder / name, tokens, processes, start=load, **on_host)
        finally:
            setup_module.shard = fsdp.shard
    return found


def distilled(folder: Path, tokens: TokenDirectory, processes: Processes) -> dict[str, object]:
    """20 steps with the reference beside, with its stored predictions, with its hidden states."""
    run_training(folder / "beside", tokens, processes, distill={})
    schedule = {"peak": 0.1, "end": 1.0}
    run_training(folder / "hidden", tokens, processes, distill={"hidden": {}, "alpha": schedule})
    run_training(folder / "kept", tokens, processes, distill={"top_k": 64})
    shards = len(list((folder / "reference" / "logits").rglob("shard.json")))
    settings = plain_settings(processes, "bf16")
    source = distillation(recipe(), {}, folder, tokens, processes, settings).source
    logits = source.distribution(torch.arange(32).view(2, 16)).logits.rows(slice(None))
    weights = list(source.model.parameters())
    held = sum(weight.to_local().numel() for weight in weights)  # also after a forward pass
    dtypes = {str(weight.dtype) for weight in weights}
    return {"shards": shards, "held": held, "dtypes": [*dtypes], "logits": logits.tolist()}


def middle(folder: Path, tokens: TokenDirectory, processes: Processes) -> dict[str, object]:
    """From step 7 to step 13, asked to stop in process 1."""
    _, trained, asked = run_training(
        folder / "elastic", tokens, processes, stop_after=13, stopping_rank=1
    )
    return {"asked": asked, "stopped": trained is None}


def leg(folder: Path, tokens: TokenDirectory, processes: Processes) -> dict[str, object]:
    """Go on with two trainings, one of them distilled, up to a step and on a layout."""
    layout, stop = json.loads(os.environ["LAYOUT"]), int(os.environ["STOP"])
    asked = {}
    for name, distill in (("plain", None), ("distilled", {})):
        more = {"stop_after": stop, "layout": layout, "distill": distill}
        *_, asked[name] = run_training(folder / name, tokens, processes, **more)
    return asked


def traffic(folder: Path, tokens: TokenDirectory, processes: Processes) -> dict[str, float]:
    """Bytes that this process receives in a step of two passes, by what they are for."""
    counted, shards = Counter(), processes.size // processes.nodes
    foreign, copies = (shards - 1) / shards, processes.nodes
    gather, reduce, add, gather_head = (
        *(dist.all_gather_single, dist.reduce_scatter_single, dist.all_reduce),
        reference_module.whole,
    )

    def count(key: str, tensor: torch.Tensor, share: float) -> None:
        if tensor.dtype == torch.float32:
            counted[key] += tensor.nbytes * share

    def gathering(output: torch.Tensor, *rest: object, **more: object) -> object:
        count("gathered", output, foreign)
        return gather(output, *rest, **more)

    def reducing(*, input: torch.Tensor, **more: object) -> object:
        count("reduced", input, foreign)
        return reduce(input=input, **more)

    def adding(tensor: torch.Tensor, **more: object) -> object:
        count("exchanged", tensor, 2 * (copies - 1) / copies)
        return add(tensor, **more)

    def gathering_head(tensor: torch.Tensor) -> torch.Tensor:
        count("gathered", tensor, foreign)
        return gather_head(tensor)

    found, settings, once = {}, plain_settings(processes), recipe()
    made = distillation(once, {}, folder, tokens, processes, settings)
    for name, learned in (("plain", None), ("distilled", made)):
        mesh = mesh_of(processes, settings)
        setup = make_setup(small_llama(), once, settings, tokens.train, processes, learned, mesh)
        counted.clear()
        dist.all_gather_single, dist.reduce_scatter_single = gathering, reducing
        dist.all_reduce, reference_module.whole = adding, gathering_head
        try:
            forward_backward(setup, 0, 0, StopFlag(), save_due=False)
        finally:
            dist.all_gather_single, dist.reduce_scatter_single, dist.all_reduce = (
                gather,
                reduce,
                add,
            )
            reference_module.whole = gather_head
        found[name] = dict(counted)
    return found


def full_disk(folder: Path, tokens: TokenDirectory, processes: Processes) -> dict[str, object]:
    """The disk of process 1 is full at the second save."""
    write, count = state.write_pieces, 0

    def fails(*arguments: object) -> None:
        nonlocal count
        count += 1
        if count > 2:
            raise OSError(28, "No space left on device")
        write(*arguments)

    if processes.rank == 1:
        state.write_pieces = fails
    code = 0
    try:
        run_training(folder / "full", tokens, processes, stop_after=3)
        run_training(folder / "full", tokens, processes)
    except MachineError as error:
        code = error.exit_code
    finally:  # the same processes go on with the next work
        state.write_pieces = write
    return {"code": code}


def interrupted_validation(
    folder: Path, tokens: TokenDirectory, processes: Processes
) -> dict[str, object]:
    """Process 1 is asked to stop while all of them validate."""
    from inheritune.errors import Interrupted

    stop = StopFlag()
    stop.signal_number = signal.SIGTERM if processes.rank == 1 else None
    try:
        measure_val_loss(small_llama(), tokens.val, 16, 4, stop, processes=processes)
    except Interrupted:
        return {"stopped": True}
    return {"stopped": False}


def failing(folder: Path, tokens: TokenDirectory, processes: Processes) -> dict[str, object]:
    """Process 1 raises, is killed, or hangs in the middle of a training."""
    how = os.environ["HOW"]

    def on_progress(progress: Progress) -> None:
        if processes.rank == 1 and progress.done == 3 * 128:
            if how == "raises":
                raise ValueError("broken on purpose")
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(14)

    settings = plain_settings(processes)
    config = LoopConfig("test", recipe(), settings, tokens.train, 2560, folder / how, INPUTS)
    with processes.watched():
        train(
            small_llama(),
            config,
            lambda model: 1.0,
            StopFlag(),
            on_progress=on_progress,
            processes=processes,
        )
    return {}


def main(names: str, folder: Path, tokens: TokenDirectory) -> None:
    processes = join(float(os.environ.get("TIMEOUT_S", "60")))
    results = {}
    for name in names.split(","):
        results[name] = globals()[name](folder, tokens, processes)
    stage = os.environ.get("STAGE", "")
    (folder / f"results-{stage}{processes.rank}.json").write_text(json.dumps(results))
    processes.leave()


def fork_rank(rank: int) -> int:
    """Start one process of the group; imports, which take most of the time, were done once."""
    if process := os.fork():
        return process
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    code = 1
    try:
        main(sys.argv[1], Path(sys.argv[2]), open_tokens(Path(sys.argv[3])))
        code = 0
    except InherituneError as error:
        sys.stderr.write(f"{error}\n")
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)  # as the command line does: a broken group aborts a plain end


if __name__ == "__main__":
    codes = []
    for stage in json.loads(os.environ.get("STAGES", "[{}]")):  # groups that follow each other
        os.environ |= stage
        started = [fork_rank(rank) for rank in range(int(os.environ["WORLD_SIZE"]))]
        codes += [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in started]
    sys.stdout.write(json.dumps(codes))
