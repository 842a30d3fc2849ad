"""Labelled sentences for tests, in files such as SST-2's."""

import pathlib

import numpy as np

WORDS = {0: ['dull', 'bad', 'tedious'], 1: ['good', 'charming', 'fine']}


def write(directory: pathlib.Path) -> list[str]:
    """Writes train, dev and test.tsv; the overrides of a config that reads them."""
    rng = np.random.default_rng(0)
    for split in ('train', 'dev', 'test'):
        labels = rng.integers(0, 2, 64)
        lines = [
            f'a {rng.choice(WORDS[label])} film number {i}\t{label}'
            for i, label in enumerate(labels)
        ]
        (directory / f'{split}.tsv').write_text('\n'.join(lines) + '\n')
    sections = {'train': 'train', 'dev': 'evals.dev', 'test': 'evals.test'}
    return [f'data.{key}.path={directory}/{split}.tsv' for split, key in sections.items()]
