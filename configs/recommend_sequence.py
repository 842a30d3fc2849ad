"""SASRec (Kang and McAuley 2018): the films a user rates next, by a causal Transformer over films.

    python -m bigmodels.main --config=configs/recommend_sequence.py

Cost and result: not measured at full length yet; experiments/recommend.py measures it beside
popularity and item-kNN on the same split.

Full size: MovieLens 25M (TFDS movielens/25m-ratings), whose archive ml-25m.zip has ratings.csv and
movies.csv, through the same source: path 'ml-25m/ratings.csv' in data.train and data.evals, columns
('userId', 'movieId', 'rating', 'timestamp'), rating_range (0.5, 5.0), and larger tables.
"""

from configs import common


def get_config(variant: str = ''):
    """The default, or `tiny` for tests."""
    config = common.get_config()
    config.model = dict(
        name='transformer',
        vocab_size=10507,  # MovieTweetings' 10,506 films and row 0
        num_layers=2,
        embed_dim=64,
        num_heads=2,
        mlp_dim=128,
        max_length=64,
        positions='learned',
        dropout_rate=0.3,
    )
    config.task = dict(
        name='next_item',
        history_length=64,
        titles=common.data_path('movietweetings/movies.csv.gz'),
        title_columns=('movie_id', 'title'),
    )
    source = dict(
        name='histories',
        path=common.data_path('movietweetings/ratings.csv.gz'),
        split_by='leave_one_out',
        columns=('user_id', 'movie_id', 'rating', 'timestamp'),
    )
    config.data.train = dict(source, split='train')
    config.data.evals = {split: dict(source, split=split) for split in ('valid', 'test')}
    config.batch_size = 32
    config.total_steps = 1600
    config.eval_every = 200
    config.optimizer.learning_rate = 1e-3
    config.checkpoint.best_metric = 'valid/ndcg@10'
    config.checkpoint.best_mode = 'max'
    if variant == 'tiny':
        config.model.update(embed_dim=16, max_length=16)
        config.task.history_length = 16
        config = common.tiny(config)
        config.eval_every = 0
    elif variant:
        raise ValueError(f'unknown variant {variant!r}; there is: tiny')
    return config.lock()
