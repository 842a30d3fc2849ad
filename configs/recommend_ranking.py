"""DLRM (Naumov et al. 2019) and DCN-v2 (Wang et al. 2021): will a user rate a film 8 or more?

    python -m bigmodels.main --config=configs/recommend_ranking.py         # DLRM
    python -m bigmodels.main --config=configs/recommend_ranking.py:dcn

Cost: two CPU cores, half a minute.
Result: an area under the ROC curve of 0.778 (DLRM) and 0.773 (DCN-v2) on the last tenth of the
ratings; the means of a user's and a film's ratings before have 0.772 together, 0.690 and 0.704
alone: `python experiments/recommend.py recommend_ranking recommend_ranking:dcn`,
experiments/results/recommend_ranking.json and recommend_ranking_dcn.json.

Full size: MovieLens 25M, see `common.use_movietweetings`, and task.threshold 4.0.
"""

from configs import common

VARIANTS = ('dcn', 'tiny')


def get_config(variant: str = ''):
    """The default is DLRM, `dcn` DCN-v2, and `tiny` for tests."""
    common.check_variant(variant, VARIANTS)
    config = common.get_config()
    # Users and films with enough training records, and row 0 for the others.
    sizes = dict(category_sizes=(4096, 4096), embed_dim=16, dropout_rate=0.2)
    config.model = dict(name='dcn' if variant == 'dcn' else 'dlrm', **sizes)
    config.task = dict(name='ranking', threshold=8.0, min_count=5)
    common.use_movietweetings(config, 'interactions', split_by='time', fractions=(0.8, 0.9))
    config.data.buffer = 32  # steps of a millisecond: one late batch must not be waited for
    config.batch_size = 512
    config.total_steps = 1000
    config.eval_every = 100
    config.optimizer.learning_rate = 1e-3
    config.checkpoint.best_metric = 'valid/auc'
    if variant == 'tiny':
        config.batch_size = 32
        config = common.tiny(config)
    return config.lock()
