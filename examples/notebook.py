# %% [markdown]
# # inheritune from Python
#
# A py:percent script: Jupyter (with jupytext), VS Code and PyCharm open it as a notebook, and a
# test runs it. It needs no GPU and no network: the package carries a reference, `embedded:demo`.

# %%
from pathlib import Path

import inheritune as it

work = Path("notebook")  # everything is written below

# %% [markdown]
# ## Look at the reference
#
# What would fewer layers cost, and which of its layers do little?

# %%
it.plan("embedded:demo")

# %%
analysis = it.analyze("embedded:demo", sequences=10)
print(f"begin with {analysis.advice.advice} layers: {analysis.advice.reason}")
analysis

# %% [markdown]
# ## Cut it
#
# The target is a plain model directory, and a transformers model when it is loaded. A model in
# memory can be cut as well: `it.inherit(model, layers=4, out=...)`.

# %%
target = it.inherit("embedded:demo", layers=4, out=work / "half")
it.verify(target, reference="embedded:demo")

# %%
model = target.load()
print(f"{model.config.num_hidden_layers} layers, {target.params:,} parameters")

# %% [markdown]
# ## Train it a little
#
# Interrupt the kernel whenever you like: the same cell continues.

# %%
text = "recipes/*.yaml"  # any text: files, folders, globs, a Hub dataset, or "stdlib"
tokens = it.prepare(text, target, work / "tokens", seq_len=64, val_fraction=0.2)
trained = it.train(
    target,
    tokens,
    work / "trained",
    train={"tokens": 8192, "seq_len": 64, "batch_tokens": 1024, "learning_rate": 1e-3},
    data={"allow_repeat": True},
)
print(f"val_loss {trained.val_loss_before:.3f} -> {trained.val_loss:.3f}")

# %% [markdown]
# ## Compare

# %%
models = ["embedded:demo", target, trained.model]
it.evaluate(models, tokens=tokens, seq_len=64)

# %% [markdown]
# ## The whole method
#
# A recipe does all of this, grows the target until it matches its reference, and trains controls.
# Here it is far too small to match anything. `it.derive("recipe.yaml")` runs a file.

# %%
result = it.derive(
    "demo",
    runs=work / "runs",
    name="tiny",
    data={"source": text, "val_fraction": 0.2, "allow_repeat": True, "split_by": "text"},
    train={"tokens": 4096, "seq_len": 64, "batch_tokens": 1024, "warmup_tokens": 0},
    grow={"max_rounds": 1},
    analyze=None,
)
print(f"{result.layers} layers: {result.val_loss:.3f}, reference {result.reference_loss:.3f}")
print(f"matched: {result.matched}; the report: {result.report}")
result
