"""Distil by the losses of TRL or DistillKit, in TRL's own environment: nothing of ours is imported.

The shortest loop that has them: the target under bf16 autocast with fused AdamW, a bf16 reference,
no dropout, forward KL at temperature 1. `loss` of the job is one of `LOSSES`:

- "gkd": `GKDTrainer.generalized_jsd_loss` on both models' whole logits, with beta 0;
- "chunked": `_chunked_divergence_loss` of TRL's DistillationTrainer, from hidden states;
- "distillkit": the formula of Arcee's DistillKit, `distil_logits.py`, in fp32 as it stands there.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from training.plain_loop import plain_loop
from training.shapes import Shape, without_dropout
from training.turns import Turns
from transformers import AutoModelForCausalLM


def gkd(target: Any, reference: Any, ids: Tensor, labels: Tensor) -> Tensor:
    from trl.experimental.gkd import GKDTrainer

    logits = target(input_ids=ids, use_cache=False).logits
    with torch.no_grad():
        learnt = reference(input_ids=ids, use_cache=False).logits
    return GKDTrainer.generalized_jsd_loss(logits, learnt, labels=labels, beta=0)


def chunked(target: Any, reference: Any, ids: Tensor, labels: Tensor) -> Tensor:
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    hidden = target.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    with torch.no_grad():
        learnt = reference.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    heads = target.lm_head.weight, reference.lm_head.weight
    return _chunked_divergence_loss(hidden, learnt, *heads, torch.ones_like(labels), beta=0.0)[0]


def distillkit(target: Any, reference: Any, ids: Tensor, labels: Tensor) -> Tensor:
    logits = target(input_ids=ids, use_cache=False).logits
    with torch.no_grad():
        learnt = reference(input_ids=ids, use_cache=False).logits
    log_q, p = logits.float().log_softmax(-1), learnt.float().softmax(-1)
    return F.kl_div(log_q, p, reduction="batchmean") / ids.shape[1]


LOSSES: dict[str, Callable[[Any, Any, Tensor, Tensor], Tensor]] = {
    each.__name__: each for each in (gkd, chunked, distillkit)
}


def main(job: dict[str, Any]) -> None:
    shape, whole, turns = Shape(**job["shape"]), Shape(**job["reference"]), Turns()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(without_dropout(shape), dtype=torch.float32).train()
    reference = AutoModelForCausalLM.from_config(without_dropout(whole), dtype=torch.bfloat16)
    reference.eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=True)

    def loss_of(ids: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return LOSSES[job["loss"]](model, reference, ids, labels)

    plain_loop(turns, shape, model.parameters(), optimizer, loss_of)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
