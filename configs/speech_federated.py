"""Federated averaging on spoken digits: six speakers, each a client with all that it has said.

    python -m bigmodels.main --config=configs/speech_federated.py:fedadam

A small Conformer hears which digit is said. Every speaker takes part in every round and makes five
steps of its own on eight recordings. `:fedadam` gives the mean of what they moved by to Adam,
`:fedprox` keeps clients near the round's parameters. `--config.federated.client_key=` divides the
recordings at random among as many clients.

Data: the Free Spoken Digit Dataset in `fsdd/`; the test has the same speakers.

Cost: two CPU cores, 72 s by FedAvg, 49 s by FedProx and 414 s by FedAdam.
Result: 91.0 % of the 300 held-out recordings right after 100 rounds of FedAdam, 85.3 % of FedAvg,
83.0 % of FedProx; 91.7 %, 88.3 % and 85.3 % where speakers are mixed.
experiments/results/federated.md has them beside MNIST.
"""

from configs import common, speech_digits

VARIANTS = ('fedadam', 'fedprox', 'tiny')


def get_config(variant: str = ''):
    """Federated averaging, FedAdam, FedProx, or `tiny` for tests."""
    common.check_variant(variant, VARIANTS)
    config = speech_digits.get_config('tiny' if variant == 'tiny' else '').unlock()
    if variant != 'tiny':
        config.model.update(num_layers=2, embed_dim=64, subsampling_channels=16)
        config.total_steps = 100
    config.federated = dict(
        clients=6,
        per_round=6,
        local_steps=5,
        local_learning_rate=0.1,
        proximal=1.0 if variant == 'fedprox' else 0.0,
        client_key='speaker',
    )
    config.batch_size = 6 * 5 * 8
    common.use_federated_server(config, variant)
    return config.lock()
