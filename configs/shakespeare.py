"""A character-level decoder Transformer on one text file, by default Tiny Shakespeare.

    python -m bigmodels.main --config=configs/shakespeare.py:path/to/input.txt

Cost: two CPU cores, 1.6 minutes with empty caches, 0.82 GB.
Result: 1.606 nats per character on the last tenth of Tiny Shakespeare; nanoGPT's recipe for CPUs
ended at 1.886 after 83 s (experiments/results/shakespeare.json, by
experiments/benchmark_shakespeare.py).
"""

from configs import common


def get_config(path: str = ''):
    """`path` of the text: its first 90 % trains, the rest validates."""
    path = path or common.data_path('tinyshakespeare/input.txt')
    config = common.get_config()
    # What is sampled may be longer than the 64 characters trained on: hence the window.
    common.small_transformer(config, vocab_size=65, num_layers=3, sliding_window=64)
    config.task = dict(
        name='language_modeling',
        tokenizer=dict(name='characters'),
        sequence_length=64,
        append_end_of_text=False,
        sample_prompt='\n',
    )
    config.data.train = dict(name='text_files', path=path, fraction=(0.0, 0.9))
    config.data.evals = dict(valid=dict(name='text_files', path=path, fraction=(0.9, 1.0)))
    config.batch_size = 12
    config.total_steps = 2000
    config.checkpoint.every = 1000
    return config.lock()
