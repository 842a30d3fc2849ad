"""Answers to questions on passages, in the format of SQuAD v1.1: as spans, and as texts.

    pip install -e '.[text]' && python -m bigmodels.main --config=configs/question_answering.py
    python -m bigmodels.main --config=configs/question_answering.py:text

By default an encoder marks the first and the last token of the answer (Devlin et al. 2019, section
4.2); in the variant `text` an encoder-decoder writes it (Raffel et al. 2020). Exact match and F1
are those of SQuAD's own evaluation.

Data: `squad/{train,dev}-v1.1.json` in $BIGMODELS_DATA, the files of SQuAD v1.1.

Cost and result: not measured on SQuAD yet. Exact match and F1 equal the official definition on
cases worked out by hand (tests/scores/test_text_scores.py).
"""

from configs import common

VARIANTS = ('text', 'tiny_text', 'tiny')


def get_config(variant: str = ''):
    """The default, `text`, and of both `tiny` and `tiny_text` for tests."""
    common.check_variant(variant, VARIANTS)
    config = common.get_config()
    common.small_transformer(config, vocab_size=8000, num_layers=4, embed_dim=256)
    config.task.update(tokenizer=dict(name='bpe', vocab_size=8000), max_references=6)
    if variant.endswith('text'):
        _as_texts(config)
    else:
        _as_spans(config)
    sets = {
        name: dict(name='squad', path=common.data_path(f'squad/{name}-v1.1.json'))
        for name in ('train', 'dev')
    }
    config.data.train = sets.pop('train')
    config.data.evals = sets
    config.batch_size = 32
    config.total_steps = 5500
    if variant.startswith('tiny'):
        _shrink(config)
    return config.lock()


def _as_spans(config) -> None:
    encoder = {key: value for key, value in config.model.items() if key != 'name'}
    config.model = dict(
        name='transformer_classifier',
        num_classes=2,
        pool='none',
        encoder=encoder | dict(causal=False, tie_embeddings=True, dropout_rate=0.1),
    )
    config.task.update(name='span_extraction', sequence_length=384, answer_length=96)


def _as_texts(config) -> None:
    config.model.update(name='encoder_decoder', dropout_rate=0.1)
    config.task.update(
        name='text_to_text',
        source_length=512,
        target_length=96,
        cut_sources=True,
        row_length=512,
        references_field='answers',
        score_names=('exact_match', 'token_f1'),
    )


def _shrink(config) -> None:
    sizes = dict(vocab_size=300, num_layers=2, embed_dim=32, num_heads=2)
    config.task.tokenizer.vocab_size = 300
    if config.task.name == 'span_extraction':
        config.model.encoder.update(sizes)
        config.task.update(sequence_length=64, question_length=16, stride=32, answer_length=16)
    else:
        config.model.update(sizes)
        config.task.update(source_length=64, target_length=16, row_length=128)
    common.tiny(config)
