"""Loss on Tiny Shakespeare against wall clock, beside nanoGPT's CPU recipe.

    python experiments/benchmark_shakespeare.py [TEXT]

Trains configs/shakespeare.py with empty caches, so that importing, tokenising, compiling,
saving and the final evaluation all count. The anchor: nanoGPT's recipe for CPUs (README of
karpathy/nanoGPT: 4 layers of 128, 2,000 steps of 12 x 64 characters) ended at 1.886 nats per
character of the same validation text after 83 s on two such cores. The text is by default
tinyshakespeare/input.txt in $BIGMODELS_DATA, or in shared/data beside the checkout.
"""

import pathlib
import sys
import tempfile

import measure

ANCHOR = {'validation_nats_per_character': 1.886, 'wall_clock_seconds': 83.0}

if __name__ == '__main__':
    text = sys.argv[1] if len(sys.argv) > 1 else measure.data_path('tinyshakespeare/input.txt')
    with tempfile.TemporaryDirectory() as directory:
        measured = measure.train(
            f'configs/shakespeare.py:{text}',
            pathlib.Path(directory, 'run'),
            pathlib.Path(directory, 'cache'),
        )
    loss = round(measured['final']['valid/loss'], 4)
    measure.write('shakespeare', {'validation_nats_per_character': loss, **measured,
                                  'anchor': ANCHOR})  # fmt: skip
