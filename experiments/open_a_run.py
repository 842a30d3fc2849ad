# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Open a run and call its functions
#
# A finished run gives back everything as plain functions and arrays: the config, the model, its
# parameters, the preprocessing, and any batch and step of the training, recomputed alone.
# Train one first: `python -m bigmodels.main --config=configs/transformer.py`.

# %%
import os
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from bigmodels import checkpoint, losses, runs, trees, writers
from bigmodels.deploy.generate import generate_text
from bigmodels.deploy.sampling import Sampling

workdir = pathlib.Path(os.environ.get('RUN', '../runs/transformer'))
run = runs.open_run(workdir)
print(f'{type(run.model).__name__} of {trees.count(run.params):,} parameters at step {run.step}')

# %% [markdown]
# ## The loss of the run, from its own log

# %%
rows = writers.read_metrics(workdir / 'metrics.jsonl')
train = [(row['step'], row['train/loss']) for row in rows if 'train/loss' in row]
valid = [(row['step'], row['eval/valid/loss']) for row in rows if 'eval/valid/loss' in row]
plt.figure(figsize=(6, 3))
plt.plot(*zip(*train), label='training')
plt.plot(*zip(*valid), 'o-', label='validation')
plt.xlabel('step')
plt.ylabel('nats per byte')
plt.legend()
plt.show()

# %% [markdown]
# ## Which bytes of a text are surprising?
#
# `model.apply` is a pure function of parameters and tokens; the loss is a function of arrays.

# %%
text = 'def mean(values):\n    """Return the average."""\n    return sum(values) / len(values)\n'
tokens = jnp.asarray(run.task.vocabulary.encode(text))[None]
logits = run.model.apply({'params': run.params}, tokens[:, :-1])
surprise = np.asarray(losses.softmax_cross_entropy(logits, tokens[:, 1:])[0])
plt.figure(figsize=(12, 2))
plt.bar(range(len(surprise)), surprise)
plt.xticks(range(len(surprise)), [repr(c)[1:-1] for c in text[1:]], fontsize=6)
plt.ylabel('nats')
plt.show()

# %% [markdown]
# ## Any step of the training, alone
#
# Batch t is `run.batches[t]`. From a saved state, one call makes the step again.

# %%
batch = run.batches[run.step]
print(run.task.postprocess(batch['inputs'][0])[:200])
program = run.program()
state = checkpoint.restore(workdir / 'checkpoints', run.step, program.state_shapes)
state, metrics = jax.jit(program.train_step)(state, batch)
print(
    {
        name: float(value[0] / value[1])
        for name, value in metrics.items()
        if isinstance(value, tuple)
    }
)

# %% [markdown]
# ## Sample

# %%
[continuation] = generate_text(run.task, run.params, ['import '], 100, Sampling(0.8), seed=1)
print('import ' + continuation)
