"""The loss against the frozen reference, and trainings with it."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig

from inheritune.data.tokens import TokenDirectory
from inheritune.errors import Interrupted, SourceError
from inheritune.progress import Progress
from inheritune.recipe import Train
from inheritune.signals import StopFlag
from inheritune.train import distill
from inheritune.train.distill import Distillation, DistillationLoss
from inheritune.train.loop import Plan, Trained, train
from inheritune.train.settings import Settings

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
LONG = {"vocab_size": 320, "max_position_embeddings": 64}


def llama(seed: int, layers: int, **changes: object) -> torch.nn.Module:
    """Random weights, large enough that distributions are far from uniform."""
    torch.manual_seed(seed)
    config = LlamaConfig(**(SMALL | LONG | changes), num_hidden_layers=layers)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def gemma2(seed: int, layers: int, **changes: object) -> torch.nn.Module:
    """Its logits are more than the head's product: a soft-cap follows."""
    torch.manual_seed(seed)
    config = Gemma2Config(**SMALL, **LONG, head_dim=8, num_hidden_layers=layers)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


MODELS = {
    "llama": llama,
    "llama, tied": lambda seed, layers: llama(seed, layers, tie_word_embeddings=True),
    "gemma2": gemma2,
}
X = torch.randint(0, 320, (3, 16), generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 320, (3, 16), generator=torch.Generator().manual_seed(1))
Y[0, :5] = Y[2, 9:] = -100


def by_formula(
    model: torch.nn.Module, reference: torch.nn.Module, alpha: float, tau: float
) -> tuple[torch.Tensor, ...]:
    """The definition, in fp64, of sums over the tokens that have a label."""
    valid = Y != -100
    z = copy.deepcopy(model).double()
    ours = z(input_ids=X).logits[valid]
    theirs = copy.deepcopy(reference).double()(input_ids=X).logits[valid].detach()
    ce = F.cross_entropy(ours, Y[valid], reduction="sum")
    p, q = (theirs / tau).softmax(-1), (ours / tau).softmax(-1)
    kl = (p * (p.log() - q.log())).sum()
    loss = alpha * ce + (1 - alpha) * tau**2 * kl
    loss.backward()
    return loss, ce, kl, {name: param.grad for name, param in z.named_parameters()}


@pytest.mark.parametrize("chunk", [2**25, 7 * 320])
@pytest.mark.parametrize(("alpha", "tau"), [(0.6, 1.0), (0.3, 2.5), (0.0, 1.0)])
@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_formula_and_so_are_its_gradients(
    name: str,
    alpha: float,
    tau: float,
    chunk: int,
    plain: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distill, "_CHUNK_LOGITS", chunk)
    model, reference = MODELS[name](0, 2), MODELS[name](1, 3)
    wanted = DistillationLoss(model, Distillation(reference, alpha, tau), plain)
    assert wanted.by_head == (name != "gemma2")
    found = wanted(model, X, Y)
    found[0].backward()
    loss, ce, kl, gradients = by_formula(model, reference, alpha, tau)
    expected = torch.stack((loss, ce, kl)).detach()
    torch.testing.assert_close(found.detach().double(), expected, rtol=1e-5, atol=1e-5)
    for key, parameter in model.named_parameters():
        gap = (parameter.grad.double() - gradients[key]).norm()
        assert gap <= 1e-5 * gradients[key].norm() + 1e-7, key


def test_a_head_with_a_bias_has_its_gradient_too(plain: Settings) -> None:
    model, reference = llama(0, 2), llama(1, 2)
    for each in (model, reference):
        each.lm_head = torch.nn.Linear(32, 320)
    found = DistillationLoss(model, Distillation(reference, 0.6, 2.0), plain)(model, X, Y)
    found[0].backward()
    gradients = by_formula(model, reference, 0.6, 2.0)[3]
    for key in ("lm_head.weight", "lm_head.bias"):
        ours = model.get_parameter(key).grad.double()
        torch.testing.assert_close(ours, gradients[key], rtol=1e-4, atol=1e-5)


def test_a_copy_of_the_reference_has_no_divergence_and_a_fresh_model_has_much(
    plain: Settings,
) -> None:
    reference = llama(1, 3)
    for model, least, most in ((copy.deepcopy(reference), 0.0, 1e-6), (llama(2, 3), 1.0, 100.0)):
        loss = DistillationLoss(model, Distillation(reference, 0.6, 1.0), plain)
        divergence = float(loss(model, X, Y)[2]) / int((Y != -100).sum())
        assert least - 1e-6 <= divergence <= most


def test_in_bf16_both_compute_in_bf16_and_sum_in_fp32(plain: Settings) -> None:
    model, reference = llama(0, 2), llama(1, 3)
    bf16 = replace(plain, precision="bf16")
    wanted = DistillationLoss(model, Distillation(reference, 0.6, 1.0), bf16)
    with bf16.autocast():
        found = wanted(model, X, Y)
    found[0].backward()
    expected = torch.stack(by_formula(model, reference, 0.6, 1.0)[:3]).detach()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.detach().double(), expected, rtol=2e-2, atol=0)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    wanted.check(torch.cat((X, Y[:, :1].clamp(min=0)), 1))


def test_only_the_target_is_given_gradients_and_the_reference_stays_as_it_is(
    plain: Settings,
) -> None:
    model, reference = llama(0, 2), llama(1, 3).train()
    before = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    DistillationLoss(model, Distillation(reference, 0.0, 1.0), plain)(model, X, Y)[0].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in reference.parameters())
    assert not any(module.training for module in reference.modules())
    assert_same(before, reference.state_dict())


def test_two_vocabularies_are_refused_with_their_sizes(plain: Settings) -> None:
    model, padded = llama(0, 1), llama(1, 1, vocab_size=384)
    with pytest.raises(SourceError, match="target predicts 320 ids and its reference 384"):
        DistillationLoss(model, Distillation(padded, 0.6, 1.0), plain)


def test_a_divergence_of_the_reference_from_itself_is_our_mistake(
    plain: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, reference = llama(0, 1), llama(1, 1)
    loss = DistillationLoss(model, Distillation(reference, 0.6, 1.0), plain)
    samples = torch.cat((X, X[:, :1]), 1)
    loss.check(samples)
    right = distill._Terms.of

    def entropy_left_out(terms: object, *args: object) -> object:
        ce, kl, slope = right(terms, *args)
        return ce, kl + ce, slope

    monkeypatch.setattr(distill._Terms, "of", entropy_left_out)
    with pytest.raises(AssertionError, match=r"from itself is .* nats per token, not 0"):
        loss.check(samples)


# -- trainings


def rows_of(folder: Path, key: str) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


class Trainer:
    """Trains copies of one model against one reference."""

    def __init__(self, tokens: TokenDirectory, settings: Settings) -> None:
        self.stream, self.settings = tokens.train, settings
        self.alpha: float | None = 0.6
        self.reference = llama(1, 3)

    def __call__(
        self, recipe: Train, folder: Path, stop_after: int | None = None
    ) -> tuple[dict[str, torch.Tensor], Trained]:
        """Start from the same weights, as a new process would."""
        model, stop = llama(0, 2), StopFlag()
        folder.mkdir(parents=True, exist_ok=True)

        def listen(progress: Progress) -> None:
            if stop_after is not None and progress.done >= stop_after * recipe.batch_tokens:
                stop.signal_number = 15

        wanted = None
        if self.alpha is not None:
            wanted = Distillation(copy.deepcopy(self.reference), self.alpha, 1.0)
        plan = Plan("test", self.stream, recipe.tokens, {}, distillation=wanted)
        told = (lambda model: 1.0, stop, listen)
        trained = train(model, recipe, plan, self.settings, folder, *told)
        if wanted is not None:
            assert_same(self.reference.state_dict(), wanted.reference.state_dict())
        return model.state_dict(), trained


@pytest.fixture
def trainer(tiny_tokens: TokenDirectory, plain: Settings) -> Trainer:
    return Trainer(tiny_tokens, plain)


def test_the_divergence_falls_and_rows_say_what_the_loss_is_made_of(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    trainer(train_recipe, tmp_path)
    loss, ce, kl = (rows_of(tmp_path, key) for key in ("loss", "ce", "kl"))
    assert len(loss) == len(ce) == len(kl) == 20
    assert loss == pytest.approx([0.6 * c + 0.4 * k for c, k in zip(ce, kl, strict=True)])
    assert sum(kl[-5:]) < sum(kl[:5])


def test_with_alpha_1_it_trains_as_without_a_reference(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    trainer.alpha = 1.0
    trainer(train_recipe, tmp_path / "alpha 1")
    trainer.alpha = None
    trainer(train_recipe, tmp_path / "plain")
    ours, plain = (rows_of(tmp_path / name, "loss") for name in ("alpha 1", "plain"))
    assert ours[0] == pytest.approx(plain[0], abs=1e-6)
    assert ours == pytest.approx(plain, abs=1e-3)  # 20 steps at a high rate: rounding grows
    assert rows_of(tmp_path / "plain", "ce") == rows_of(tmp_path / "plain", "kl") == []


def test_a_step_does_not_depend_on_its_micro_batches(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    short = train_recipe.model_copy(update={"tokens": 640})
    trainer(short, tmp_path / "8")
    for micro_batch in (1, 4):
        folder = tmp_path / str(micro_batch)
        trainer(short.model_copy(update={"micro_batch": micro_batch}), folder)
        for key in ("loss", "ce", "kl"):
            whole = rows_of(tmp_path / "8", key)
            assert rows_of(folder, key) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("stops", [[7], [3, 4, 19]])
def test_stopped_and_continued_it_ends_with_the_same_weights_and_rows(
    stops: list[int], trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    whole, _ = trainer(train_recipe, tmp_path / "whole")
    for stop in stops:
        with pytest.raises(Interrupted, match=f"saved at step {stop} of 20"):
            trainer(train_recipe, tmp_path / "pieces", stop_after=stop)
    pieces, trained = trainer(train_recipe, tmp_path / "pieces")
    assert_same(whole, pieces)
    assert trained.restarts == len(stops)
    for key in ("loss", "ce", "kl", "grad_norm"):
        assert rows_of(tmp_path / "whole", key) == rows_of(tmp_path / "pieces", key)


def test_where_the_compiler_is_asked_for_on_a_cpu_it_is_left_out_and_said(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    short = train_recipe.model_copy(update={"tokens": 256})
    eager, _ = trainer(short, tmp_path / "eager")
    trainer.settings = replace(trainer.settings, compile=True)
    weights, trained = trainer(short, tmp_path / "asked")
    assert not trained.settings.compile
    assert trained.notes == ("on a CPU a step with a reference is not compiled",)
    assert_same(eager, weights)
