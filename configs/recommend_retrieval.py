"""Two towers with corrected in-batch negatives (Yi et al. 2019): the films a user rates next.

    python -m bigmodels.main --config=configs/recommend_retrieval.py

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
        name='two_tower',
        num_items=10507,  # MovieTweetings' 10,506 films and row 0
        num_users=2048,
        embed_dim=64,
        hidden_dims=(128,),
        temperature=0.1,
        dropout_rate=0.3,
    )
    config.task = dict(
        name='retrieval',
        history_length=50,
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
    config.batch_size = 512
    config.total_steps = 2400
    config.eval_every = 400
    config.optimizer.learning_rate = 2e-3
    config.checkpoint.best_metric = 'valid/ndcg@10'
    config.checkpoint.best_mode = 'max'
    if variant == 'tiny':
        config.model.embed_dim = 8
        config.batch_size = 32
        config = common.tiny(config)
        config.eval_every = 0
    elif variant:
        raise ValueError(f'unknown variant {variant!r}; there is: tiny')
    return config.lock()
