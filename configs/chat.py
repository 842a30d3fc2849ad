"""Answers to questions of grade-school mathematics (GSM8K), learnt by adapters of a frozen base.

    python -m bigmodels.main --config=configs/transformer.py
    python -m bigmodels.main --config=configs/chat.py
    python -m bigmodels.main --config=configs/chat.py:full
    python -m bigmodels.main --config=configs/chat.py:runs/published
    python -m bigmodels.deploy.generate --workdir=runs/chat --prompt='What is 3 + 4?'

Cost: not measured yet.
Result: not measured yet. The base has read Python alone.

`full` trains all parameters in the place of adapters (LoRA); the directory of a run, such as one
that `bigmodels.interop.convert` made, takes its model and tokenizer as the base, and its chat
template, if it has one.
`--config.adapter.weights=int4` with `--config.adapter.group_size=64` keeps the base in four bits
(QLoRA). Conversations of your own, a
line {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]} each:
`--config.data.train.path=FILE --config.data.train.columns="()"`, likewise for `data.evals.test`.

    python -m bigmodels.adapters merge --workdir=runs/chat --out=runs/chat_merged
"""

import json
import pathlib

from configs import common, transformer

VARIANTS = ('full', 'tiny')


def get_config(variant: str = ''):
    """The default, `full` (all parameters), the directory of a run, or `tiny` for tests."""
    base = pathlib.Path(variant, 'config.json')
    if not base.is_file():
        common.check_variant(variant, VARIANTS)
    config = common.get_config()
    config.model = transformer.get_config('tiny' if variant == 'tiny' else '').model
    config.model.max_length = 1280
    config.task = dict(
        name='chat',
        tokenizer=dict(name='bytes'),
        sequence_length=1024,
        cut_conversations=True,
        score_names=('final_number',),
        scored=64,
        answer_tokens=256,
        sample_prompt='Tom has 3 boxes of 12 pens and gives 5 pens away. How many has he left?',
    )
    sets = {
        split: dict(
            name='chats',
            path=common.data_path(f'gsm8k/{split}.jsonl.gz'),
            columns=('question', 'answer'),
        )
        for split in ('train', 'test')
    }
    config.data.train = sets.pop('train')
    config.data.evals = sets
    config.init_from = dict(workdir='runs/transformer')
    config.optimizer.weight_decay = 0.0
    config.optimizer.schedule = dict(name='linear', warmup_steps=20)
    config.batch_size = 8
    config.total_steps = 300
    if base.is_file():
        kept = json.loads(base.read_text())
        config.model = kept['model']
        config.task.tokenizer = dict(name='saved', path=f'{variant}/preprocessing')
        config.task.sequence_length = min(1024, config.model.max_length - 256)
        config.init_from.workdir = variant
        config.optimizer.learning_rate = 2e-4
    elif variant == 'full':
        config.optimizer.learning_rate = 1e-3
    else:
        config.optimizer.learning_rate = 5e-3
    if variant != 'full':
        config.adapter = dict(rank=16, alpha=32.0)
    if variant == 'tiny':
        config.init_from = dict()
        config.model.max_length = 320
        config.task.update(sequence_length=256, scored=4, answer_tokens=16, sample_tokens=16)
        config = common.tiny(config)
    return config.lock()
