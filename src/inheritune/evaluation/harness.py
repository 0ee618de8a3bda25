"""Ask a model one task with lm-eval as a library; prompts and metrics are lm-eval's own."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from inheritune.errors import InherituneError, MachineError, UnsupportedModelError, first_line
from inheritune.evaluation.quiet import quiet
from inheritune.evaluation.task_descriptions import TaskDescription
from inheritune.evaluation.task_files import tasks_root
from inheritune.model_files.quantisation import forget_quantisation
from inheritune.model_files.refusals import refuse_attached_adapter
from inheritune.model_files.safetensors import DTYPES, torch_name
from inheritune.surgery.class_check.tokenizer_ids import load_tokenizer

# Draws behind the standard error of a perplexity. lm-eval takes 100,000, which for LAMBADA takes
# longer than the questions do; a thousand give the error to 2 %. Scores do not depend on it.
BOOTSTRAPS = 1000
# As lm-eval's own command line sets them.
_SEED, _OTHER_SEED = 0, 1234


def lm_eval_version() -> str:
    """Return the version of the installed lm-eval; MissingExtraError if there is none."""
    tasks_root()
    return version("lm_eval")


def load_questions(task: TaskDescription) -> Any:
    """Read a task's questions from local files, the Hub, or this machine's cache of it.

    Returns:
        The questions as `run_task` takes them.

    Raises:
        MachineError: The questions cannot be read.
    """
    with quiet():
        from lm_eval.tasks import TaskManager

        try:
            folders = [str(folder) for folder in task.folders or ()]
            manager = TaskManager(
                include_path=folders or None, include_defaults=task.folders is None
            )
            return manager.load([task.spec])
        except InherituneError:
            raise
        except Exception as error:
            raise MachineError(
                f"the questions of {task.task} ({task.dataset}) cannot be read: "
                f"{first_line(error)}.",
                _cache_hint(error)
                or f"With a network: inheritune evaluate --tasks {task.task} --fetch-only; "
                "or --task-data.",
            ) from error


def _cache_hint(error: BaseException | None) -> str:
    """Return the way out where the cache of the Hub cannot be written; else an empty text."""
    from huggingface_hub import constants

    while error is not None:
        file = str(error.filename or "") if isinstance(error, OSError) else ""
        if file and f"{constants.HF_HOME}/".startswith(f"{file}/"):
            return f"HF_HOME is {constants.HF_HOME}: set it to a directory that you can write to."
        error = error.__cause__ or error.__context__
    return ""


def load_lm(
    path: Path,
    batch_size: int,
    dtype: str,
    loader: str,
    add_bos: bool | None,
    device: str,
    before_forward: Callable[[int], None],
) -> Any:
    """Load a model directory as lm-eval's `HFLM`.

    Args:
        batch_size: Requests in a forward.
        dtype: Precision of weights and computation: ``fp32``, ``bf16`` or ``fp16``.
        loader: Class of transformers that reads the tokenizer.
        add_bos: Whether every text begins with BOS; None: as the tokenizer does by itself.
        before_forward: Receives the number of rows of each forward; may raise to end the task.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with quiet():
        from lm_eval.models.huggingface import HFLM

        class CheckedHFLM(HFLM):  # type: ignore[misc]
            """HFLM that raises an error of ours for answers longer than a window."""

            def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
                _refuse_long_answers(requests, self.max_length)
                return super()._loglikelihood_tokens(requests, *args, **kwargs)

        # Left out of the tokenizer's options unless given: each tokenizer has its own default.
        bos_option = {} if add_bos is None else {"add_bos_token": add_bos}
        tokenizer = load_tokenizer(path, loader, **bos_option)
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        forget_quantisation(config)
        refuse_attached_adapter(path)
        model: Any = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=getattr(torch, torch_name(DTYPES[dtype])),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
        model.to(device).eval().register_forward_pre_hook(
            lambda _, args, kwargs: before_forward(_num_rows(args, kwargs)), with_kwargs=True
        )
        return CheckedHFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            add_bos_token=add_bos,
        )


def _refuse_long_answers(requests: Sequence[Any], max_length: int) -> None:
    lengths = [len(answer) for _, _, answer in requests]
    if too_long := [length for length in lengths if length > max_length]:
        raise UnsupportedModelError(
            f"{len(too_long)} of {len(lengths)} answers are longer than the {max_length} tokens "
            f"that the model takes (the longest: {max(too_long)}), so lm-eval cannot score them.",
            "Leave the task out for this model, or ask fewer questions: --limit.",
        )


def _num_rows(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    ids = args[0] if args else kwargs.get("input_ids")
    return 0 if ids is None else int(ids.shape[0])


def run_task(lm: Any, questions: Any, task: TaskDescription, limit: int | None) -> dict[str, Any]:
    """Ask a model one task, as `lm_eval.simple_evaluate` does.

    Unlike that function, it neither looks at the machine nor runs git, which takes seconds a task.

    Args:
        lm: The model that `load_lm` returned.
        questions: The questions that `load_questions` returned; they can be asked once.
        limit: Number of questions of each task; None: all.

    Returns:
        lm-eval's result as it is.
    """
    import numpy as np
    import torch
    from lm_eval.evaluator import evaluate

    random.seed(_SEED)
    np.random.seed(_OTHER_SEED)
    torch.manual_seed(_OTHER_SEED)
    for single in questions["tasks"].values():
        described_shots = single.get_config("num_fewshot")
        if task.shots is not None and described_shots != 0:  # 0 in a description: it must be 0
            single.set_config(key="num_fewshot", value=task.shots)
        elif described_shots is None:
            single.set_config(key="num_fewshot", value=0)
        single.set_fewshot_seed(seed=_OTHER_SEED)
    with quiet():
        result = evaluate(
            lm=lm,
            task_dict=questions,
            limit=limit,
            bootstrap_iters=BOOTSTRAPS,
            log_samples=False,
            confirm_run_unsafe_code=task.allow_code,
        )
    assert result is not None  # only processes of rank above 0 get None
    return dict(result)


def result_text(result: Mapping[str, Any]) -> str:
    """Write lm-eval's result as JSON, in the form of its own command."""
    from lm_eval.utils import handle_non_serializable

    return json.dumps(dict(result), indent=2, default=handle_non_serializable, ensure_ascii=False)
