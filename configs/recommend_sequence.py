"""SASRec (Kang and McAuley 2018): the films a user rates next, by a causal Transformer over films.

    python -m bigmodels.main --config=configs/recommend_sequence.py

Cost: two CPU cores, 13.5 min beside other work, 1.1 GB.
Result: NDCG@10 of 0.100 and a hit rate of 18.7 % in ten on the last films of all users, in lists of
all 10,506 films; item-kNN has 0.074, popularity 0.073: `python experiments/recommend.py
recommend_sequence`, experiments/results/recommend_sequence.json.

Full size: MovieLens 25M, see `common.use_movietweetings`.
"""

from configs import common

VARIANTS = ('tiny',)


def get_config(variant: str = ''):
    """The default, or `tiny` for tests."""
    common.check_variant(variant, VARIANTS)
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
    config.task = common.next_film_task('next_item', history_length=64)
    common.use_movietweetings(config, 'histories', split_by='leave_one_out')
    config.batch_size = 32
    config.total_steps = 1600
    config.eval_every = 200
    config.optimizer.learning_rate = 1e-3
    config.checkpoint.best_metric = 'valid/ndcg@10'
    if variant == 'tiny':
        config.model.update(embed_dim=16, max_length=16)
        config.task.history_length = 16
        config = common.tiny(config)
    return config.lock()
