"""Time the scores of all single removals against the least that they can cost.

    python benchmarks/layer_scores.py [--layers 12] [--width 256] [--vocab 8192]

The least: N/2 passes of the layers, since what lies before a removed layer need not be run again,
and N + 1 heads. Both sides are timed in turn, five times each, on the same windows.
"""

import argparse
import json
import sys

import numpy as np
import torch
import transformers
from measuring.roofline import clock, layer_weights, roofline
from training.shapes import Shape

from inheritune.analysis.cut_scores import score_cuts
from inheritune.surgery.removal import without
from inheritune.training.lazy_logits import lazy_logits

BOUND = 1.3  # most times the least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    total = options.layers
    config = transformers.LlamaConfig(
        hidden_size=options.width,
        intermediate_size=4 * options.width,
        num_hidden_layers=total,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=options.vocab,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    ids = np.random.default_rng(0).integers(0, options.vocab, (4, 257))
    cuts = [without(total, [layer]) for layer in range(total)]
    figures = []
    for _ in range(options.repeats):
        begin = clock()
        found = score_cuts(model, total, ids, cuts)
        scored = clock() - begin
        figures.append((scored, least(model, ids, total)))
    scored, bound = map(float, np.median(figures, axis=0))
    ratio = float(np.median([one / other for one, other in figures]))
    tokens = ids[:, 1:].size
    shape = Shape(
        "", "llama", options.vocab, total, options.width, 4, 4 * options.width, 4, 256, False
    )
    limits = roofline(layer_weights(shape), tokens)
    *layer, head = (2 * tokens * rows * columns for rows, columns in layer_weights(shape))
    flops = found.layers_run * sum(layer) + found.heads_run * head
    print(limits.line(), file=sys.stderr)
    print(
        json.dumps(
            {
                "seconds": scored,
                "least_seconds": bound,
                "ratio": ratio,
                "bound": BOUND,
                "of_fp32_limit": flops / scored / limits.fp32,
            }
        )
    )
    raise SystemExit(ratio > BOUND)


def least(model: transformers.LlamaForCausalLM, ids: np.ndarray, total: int) -> float:
    """Seconds of N/2 passes of the stack and of N + 1 heads with their KL and cross-entropy."""
    inputs, labels = torch.from_numpy(ids[:, :-1]), torch.from_numpy(ids[:, 1:]).flatten()
    begin = clock()
    with torch.no_grad():
        for number in range(max(1, total // 2)):
            logits = lazy_logits(model, inputs, True)
            if not number:
                log_p = _log_probabilities(logits)
        for _ in range(total + 1):
            log_q = _log_probabilities(logits)
            kl = (log_p.exp() * (log_p - log_q)).sum(-1)
            float(kl.double().sum() - log_q.gather(1, labels[:, None]).double().sum())
    return clock() - begin


def _log_probabilities(logits: object) -> torch.Tensor:
    parts = [logits.rows(part).float().log_softmax(-1) for part in logits.chunks()]
    return torch.cat(parts)


if __name__ == "__main__":
    main()
