"""DLRM (Naumov et al. 2019) and DCN-v2 (Wang et al. 2021): will a user rate a film 8 or more?

    python -m bigmodels.main --config=configs/recommend_ranking.py

Cost and result: not measured at full length yet; experiments/recommend.py measures it beside
the means of earlier ratings on the same split.

Full size: MovieLens 25M (TFDS movielens/25m-ratings), whose archive ml-25m.zip has ratings.csv and
movies.csv, through the same source: path 'ml-25m/ratings.csv' in data.train and data.evals, columns
('userId', 'movieId', 'rating', 'timestamp'), rating_range (0.5, 5.0), task.threshold 4.0, and
larger tables.
"""

from configs import common


def get_config(variant: str = ''):
    """The default is DLRM, `dcn` DCN-v2, and `tiny` for tests."""
    config = common.get_config()
    sizes = dict(category_sizes=(2500, 2600), embed_dim=16, dropout_rate=0.2)
    config.model = dict(name='dcn' if variant == 'dcn' else 'dlrm', **sizes)
    config.task = dict(name='ranking', threshold=8.0, min_count=5)
    source = dict(
        name='interactions',
        path=common.data_path('movietweetings/ratings.csv.gz'),
        split_by='time',
        fractions=(0.8, 0.9),
        columns=('user_id', 'movie_id', 'rating', 'timestamp'),
    )
    config.data.train = dict(source, split='train')
    config.data.evals = {split: dict(source, split=split) for split in ('valid', 'test')}
    config.data.buffer = 32  # steps of a millisecond: one late batch must not be waited for
    config.batch_size = 512
    config.total_steps = 1000
    config.eval_every = 100
    config.optimizer.learning_rate = 1e-3
    config.checkpoint.best_metric = 'valid/auc'
    config.checkpoint.best_mode = 'max'
    if variant == 'tiny':
        config.batch_size = 32
        config = common.tiny(config)
        config.eval_every = 0
    elif variant not in ('', 'dcn'):
        raise ValueError(f'unknown variant {variant!r}; there are: dcn, tiny')
    return config.lock()
