"""Two towers with corrected in-batch negatives (Yi et al. 2019): the films a user rates next.

    python -m bigmodels.main --config=configs/recommend_retrieval.py

Cost: two CPU cores, up to 1.4 min beside other work.
Result: NDCG@10 of 0.106 and a hit rate of 20.1 % in ten on the last films of all users, in lists of
all 10,506 films; item-kNN has 0.074, popularity 0.073: `python experiments/recommend.py
recommend_retrieval`, experiments/results/recommend_retrieval.json.

Full size: MovieLens 25M, see `common.use_movietweetings`.
"""

from configs import common

VARIANTS = ('tiny',)


def get_config(variant: str = ''):
    """The default, or `tiny` for tests."""
    common.check_variant(variant, VARIANTS)
    config = common.get_config()
    config.model = dict(
        name='two_tower',
        num_items=10507,  # MovieTweetings' 10,506 films and row 0
        num_users=2304,  # 2,153 with enough training records, and row 0
        embed_dim=64,
        hidden_dims=(128,),
        temperature=0.1,
        dropout_rate=0.3,
    )
    config.task = common.next_film_task('retrieval', history_length=50)
    common.use_movietweetings(config, 'histories', split_by='leave_one_out')
    config.batch_size = 512
    config.total_steps = 2400
    config.eval_every = 400
    config.optimizer.learning_rate = 2e-3
    config.checkpoint.best_metric = 'valid/ndcg@10'
    if variant == 'tiny':
        config.model.embed_dim = 8
        config.batch_size = 32
        config = common.tiny(config)
    return config.lock()
