"""What every config starts from."""

import os
from collections.abc import Sequence

import ml_collections


def data_path(name: str) -> str:
    """Where a data set's files are: in $BIGMODELS_DATA, or in shared/data beside the checkout."""
    return os.path.join(os.environ.get('BIGMODELS_DATA') or '../shared/data', name)


def check_variant(variant: str, known: Sequence[str]) -> None:
    """Raises ValueError for a variant that is neither the default, '', nor one of those known."""
    if variant and variant not in known:
        raise ValueError(f'unknown variant {variant!r}; there are: {", ".join(known)}')


def get_config() -> ml_collections.ConfigDict:
    """The defaults; `experiment.Experiment` documents each key."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.accumulate = 1
    config.ema_decay = 0.0
    config.mesh = dict(replica=1, data=-1, stage=1, fsdp=1, expert=1, sequence=1, tensor=1)
    config.parallel = 'jit'
    config.xla = dict()
    config.init_from = dict(workdir='')
    config.adapter = dict(rank=0)
    config.privacy = dict(epsilon=None, delta=1e-5, clip=1.0, examples=0)
    config.federated = dict(clients=0)
    config.prune = dict(sparsity=0.0)
    config.compress = dict(weights='float32', activations='float32')
    config.distill = dict(teacher='')
    config.guard = dict(policy='stop', max_skips=10, spike_sigma=0.0, spike_window=128)
    config.eval_every = 0
    config.log_every = 50
    config.checkpoint = dict(every=500, keep_last=2, best_metric='', best_mode='min')
    config.data = dict(train=dict(), evals=dict(), threads=2, buffer=8, workers=0)
    config.model = dict()
    config.task = dict()
    config.optimizer = dict(
        learning_rate=1e-3,
        algorithm=dict(name='adamw', b1=0.9, b2=0.95),
        schedule=dict(name='cosine', warmup_steps=100, final=0.1),
        clip_norm=1.0,
        weight_decay=0.1,
    )
    return config


def use_mnist(config: ml_collections.ConfigDict, shift: int) -> None:
    """MNIST, its training images moved by up to so many pixels and turned; and 21 epochs of it."""
    path = data_path('mnist')
    config.data.train = dict(name='mnist', path=path, split='train')
    config.data.evals = dict(test=dict(name='mnist', path=path, split='test'))
    augment = dict(rotate=10.0, scale=0.1, shift=shift)
    config.task = dict(name='classification', mean=33.3, std=78.6, augment=augment)
    config.batch_size = 256
    config.total_steps = 5000
    config.ema_decay = 0.999
    config.optimizer.learning_rate = 3e-3
    config.optimizer.schedule = dict(name='linear', warmup_steps=200)


def use_federated_server(config: ml_collections.ConfigDict, variant: str) -> None:
    """What a server makes of the mean of what clients moved by: FedAvg's step, or `fedadam`'s."""
    config.ema_decay = 0.0
    config.optimizer = dict(
        learning_rate=1.0, algorithm=dict(name='sgd', momentum=0.0), schedule=dict(name='constant')
    )
    if variant == 'fedadam':
        config.optimizer.learning_rate = 0.01
        config.optimizer.algorithm = dict(name='adam', b1=0.9, b2=0.99, eps=1e-3)


def use_cifar10(config: ml_collections.ConfigDict, **augment) -> None:
    """The 50,000 and 10,000 images of CIFAR-10, as JPEG files of 32 x 32 pixels."""
    path = os.path.join(data_path('cifar10'), 'cifar10_jpeg.npz')
    config.data.train = dict(name='decoded_jpeg_npz', path=path, split='train')
    config.data.evals = dict(test=dict(name='decoded_jpeg_npz', path=path, split='test'))
    config.model.num_classes = 10
    config.task = dict(name='classification', mean=120.7, std=64.1, augment=augment)


def use_strong_cifar10(config: ml_collections.ConfigDict, learning_rate: float) -> None:
    """The recipe of networks that are to get all out of about ten epochs of CIFAR-10."""
    use_cifar10(config, flip=0.5, shift=2)
    config.task.label_smoothing = 0.1
    config.batch_size = 256
    config.eval_every = 500
    config.ema_decay = 0.99
    config.optimizer.learning_rate = learning_rate
    config.optimizer.algorithm = dict(name='muon', ns_steps=3)
    config.optimizer.schedule = dict(name='linear', warmup_steps=100)


def use_one_epoch_of_cifar10(config: ml_collections.ConfigDict) -> None:
    """For networks that need an accelerator or an hour to show more than that they learn."""
    use_cifar10(config, flip=0.5, shift=4)
    config.batch_size = 128
    config.total_steps = 390
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = dict(name='linear', warmup_steps=50)


def use_imagenet(config: ml_collections.ConfigDict) -> None:
    """90 epochs of `imagenet/train`, evaluated on `imagenet/val`: a folder for each class."""
    path = data_path('imagenet')
    config.data.train = dict(name='image_folder', path=os.path.join(path, 'train'))
    config.data.evals = dict(valid=dict(name='image_folder', path=os.path.join(path, 'val')))
    config.data.workers = 16  # processes that decode
    config.model.num_classes = 1000
    config.task = dict(
        name='classification',
        image_size=224,
        mean=114.5,
        std=58.4,
        augment=dict(crop=0.08, flip=0.5),
        label_smoothing=0.1,
        top_k=5,
    )
    config.batch_size = 1024
    config.total_steps = 112_500
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = dict(name='cosine', warmup_steps=6250)


def small_transformer(config: ml_collections.ConfigDict, **fields) -> None:
    """A Transformer and an optimiser for minutes on a CPU: many quick steps of a small model."""
    config.model = dict(
        name='transformer',
        embed_dim=128,
        num_heads=4,
        max_length=512,
        norm='rms_norm',
        activation='relu_squared',
        use_bias=False,
        tie_embeddings=False,
    )
    config.model.update(fields)
    config.optimizer.learning_rate = 4e-3
    config.optimizer.algorithm = dict(name='muon', ns_steps=3)
    config.optimizer.schedule = dict(name='linear', warmup_steps=50)


def sst2(config: ml_collections.ConfigDict) -> None:
    """Sentences of film reviews, positive or negative, in their customary splits."""
    config.task = dict(
        name='text_classification', sequence_length=64, classes=('negative', 'positive')
    )
    sets = {
        split: dict(name='tsv', path=data_path(f'sst2/{split}.tsv.gz'), columns=('text', 'label'))
        for split in ('train', 'dev', 'test')
    }
    config.data.train = sets.pop('train')
    config.data.evals = sets


def use_movietweetings(config: ml_collections.ConfigDict, source: str, **split) -> None:
    """100,000 ratings of 10,506 films, split as `source` does; the best step by validation counts.

    Full size: MovieLens 25M (TFDS movielens/25m-ratings), whose archive ml-25m.zip has ratings.csv
    and movies.csv: path 'ml-25m/ratings.csv' in data.train and data.evals, columns ('userId',
    'movieId', 'rating', 'timestamp'), rating_range (0.5, 5.0); where the task has titles, titles
    'ml-25m/movies.csv' and title_columns ('movieId', 'title'); and larger tables.
    """
    columns = ('user_id', 'movie_id', 'rating', 'timestamp')
    path = data_path('movietweetings/ratings.csv.gz')
    one = dict(name=source, path=path, columns=columns, **split)
    config.data.train = dict(one, split='train')
    config.data.evals = {name: dict(one, split=name) for name in ('valid', 'test')}
    config.checkpoint.best_mode = 'max'


def next_film_task(name: str, history_length: int) -> dict:
    """A task of recommending films by users' histories, which answers with their titles."""
    return dict(
        name=name,
        history_length=history_length,
        titles=data_path('movietweetings/movies.csv.gz'),
        title_columns=('movie_id', 'title'),
    )


def table_model(config: ml_collections.ConfigDict, variant: str, **fields) -> None:
    """A model of tables and its optimiser: a perceptron, or an FT-Transformer."""
    config.model = dict(
        name='tabular_mlp',
        numeric='piecewise_linear',
        num_features=32,
        embed_dim=16,
        hidden_dims=(256, 256),
        dropout_rate=0.2,
    )
    if variant == 'ft_transformer':
        config.model = dict(
            name='ft_transformer',
            numeric='piecewise_linear',
            num_features=32,
            embed_dim=64,
            num_layers=3,
            num_heads=4,
            mlp_dim=128,
            dropout_rate=0.1,
        )
    config.model.update(fields)
    config.optimizer.learning_rate = 1e-3
    config.batch_size = 256
    config.ema_decay = 0.995


def tiny(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A config cut down to a few seconds, for tests."""
    config.total_steps = 20
    config.log_every = 5
    config.eval_every = 0
    config.checkpoint.every = 10
    config.optimizer.schedule.warmup_steps = 2
    return config
