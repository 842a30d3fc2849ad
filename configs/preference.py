"""A chat model that learns which answers are preferred: direct preference optimisation (DPO).

    python -m bigmodels.main --config=configs/chat.py
    python -m bigmodels.adapters merge --workdir=runs/chat --out=runs/chat_merged
    python -m bigmodels.main --config=configs/preference.py:FOLDER

FOLDER, by default `preferences` in $BIGMODELS_DATA, holds train.jsonl and test.jsonl, a line
{"prompt": ..., "chosen": ..., "rejected": ...} each. The merged run is the reference that the
loss compares with.

Cost: not measured yet.
Result: not measured yet on a real set. The loss equals its published formula, and a tiny run raises
the margin (tests/tasks/test_preference.py).
"""

from configs import chat, common


def get_config(folder: str = ''):
    """`folder` of the data, or `tiny` for tests."""
    tiny = folder == 'tiny'
    folder = common.data_path('preferences') if tiny else folder or common.data_path('preferences')
    tuned = chat.get_config('tiny' if tiny else '')
    config = common.get_config()
    config.model = tuned.model
    config.adapter = tuned.adapter
    config.task = dict(
        name='preference',
        tokenizer=dict(name='bytes'),
        sequence_length=tuned.task.sequence_length,
        cut_conversations=True,
        sample_prompt=tuned.task.sample_prompt,
    )
    config.data.train = dict(name='preferences', path=f'{folder}/train.jsonl')
    config.data.evals = dict(test=dict(name='preferences', path=f'{folder}/test.jsonl'))
    config.init_from = dict(workdir='runs/chat_merged')
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.0
    config.batch_size = 8
    config.total_steps = 300
    if tiny:
        config.init_from = dict()
        config.task.sample_tokens = 16
        config = common.tiny(config)
    return config.lock()
