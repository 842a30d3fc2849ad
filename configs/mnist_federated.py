"""Federated averaging on MNIST: 100 clients, of which ten take part in a round.

    python -m bigmodels.main --config=configs/mnist_federated.py

A perceptron. Clients hold unlike shares of the digits, by a Dirichlet distribution of concentration
0.3; each makes ten steps of its own on 20 digits in a round. `:fedadam` gives the mean of what they
moved by to Adam, `:fedprox` keeps clients near the round's parameters. `--config.federated.alpha=0`
makes clients alike.

Data: the four files of MNIST in `mnist/`.

Cost: two CPU cores shared with other work, 15 s and up to 45 s of compilation.
Result: 94.7 % of the 10,000 test digits right after 100 rounds, 96.4 % by FedAdam, 94.1 % by
FedProx; other concentrations, and clients that are protected whole, are in
experiments/results/federated.md.
"""

from configs import common

VARIANTS = ('fedadam', 'fedprox', 'tiny')


def get_config(variant: str = ''):
    """Federated averaging, FedAdam, FedProx, or `tiny` for tests."""
    common.check_variant(variant, VARIANTS)
    config = common.get_config()
    config.model = dict(name='mlp', hidden_dims=(128,), num_classes=10)
    common.use_mnist(config, shift=0)
    config.task.augment = None
    config.federated = dict(
        clients=100,
        per_round=10,
        local_steps=10,
        local_learning_rate=0.05,
        proximal=1.0 if variant == 'fedprox' else 0.0,
        alpha=0.3,
    )
    config.batch_size = 10 * 10 * 20
    config.total_steps = 100
    common.use_federated_server(config, variant)
    if variant == 'tiny':
        config.total_steps, config.log_every, config.checkpoint.every = 20, 5, 10
    return config.lock()
