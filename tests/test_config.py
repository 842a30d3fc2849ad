"""Every key of a config is checked, every config of the repository passes."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import pytest

from bigmodels import config, errors, experiment, optimizers
from bigmodels.data import pipeline
from bigmodels.models import MODELS

CONFIGS = pathlib.Path(__file__).parent.parent / 'configs'


@dataclasses.dataclass
class Part:
    """One field of each kind that a section may have."""

    size: int
    rate: float = 0.5
    label: str = 'a'
    flag: bool = False
    limit: int | None = None
    mode: Literal['min', 'max'] = 'min'
    names: Sequence[str] = ()
    extra: Mapping[str, Any] | None = None
    anything: Any = None


def make_part(size: int, rate: float = 0.5):
    return Part(size, rate)


@pytest.mark.parametrize('factory', [Part, make_part])
def test_an_unknown_key_names_the_nearest(factory):
    with pytest.raises(errors.UserError, match=r"config\.part 'siez'.*Did you mean 'size'"):
        config.build(factory, {'siez': 1}, 'part')


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('size', 1.0),
        ('size', True),
        ('size', '1'),
        ('size', None),
        ('rate', '0.5'),
        ('rate', False),
        ('rate', None),
        ('label', 3),
        ('flag', 1),
        ('limit', 2.0),
        ('limit', 'none'),
        ('names', 'one'),
        ('names', (1, 2)),
        ('extra', (1,)),
    ],
)
def test_a_wrong_type_is_named(key, value):
    with pytest.raises(errors.UserError, match=rf'config\.part\.{key} = .* wrong type'):
        config.build(Part, {'size': 1} | {key: value}, 'part')


def test_a_value_that_is_no_choice_names_the_choices():
    with pytest.raises(errors.UserError, match=r"config\.part\.mode.*'median'.*max, min"):
        config.build(Part, {'size': 1, 'mode': 'median'}, 'part')


def test_right_types_arrive_as_they_are():
    section = ml_collections.ConfigDict(
        {'size': 2, 'rate': 1, 'limit': None, 'mode': 'max', 'flag': True, 'extra': {'a': 1}}
    )
    section.names = ['x', 'y']
    part = config.build(Part, section, 'part')
    assert part.rate == 1.0
    assert isinstance(part.rate, float)
    assert part.names == ('x', 'y')
    assert part.extra['a'] == 1
    assert (part.size, part.limit, part.mode, part.flag) == (2, None, 'max', True)
    assert config.build(Part, {'size': 2, 'limit': 5}, 'part').limit == 5


def test_a_missing_key_is_named():
    with pytest.raises(errors.UserError, match=r'config\.part lacks: size'):
        config.build(Part, {}, 'part')
    with pytest.raises(errors.UserError, match=r'config\.part needs a name, one of: a, b'):
        config.choose({'b': Part, 'a': Part}, {}, 'part')


def test_what_is_given_cannot_be_set():
    with pytest.raises(errors.UserError, match="'size'"):
        config.build(Part, {'size': 1}, 'part', size=2)


def test_choose_by_name_and_by_dotted_path():
    assert config.choose({'part': Part}, {'name': 'part', 'size': 1}, 'p') == Part(1)
    found = config.choose({}, {'name': 'fractions.Fraction', 'numerator': 3}, 'p')
    assert found == 3
    with pytest.raises(errors.UserError, match='no_such_module'):
        config.choose({}, {'name': 'no_such_module.Thing'}, 'p')
    with pytest.raises(errors.UserError, match='Nothing'):
        config.choose({}, {'name': 'fractions.Nothing'}, 'p')


def test_an_unknown_name_lists_what_exists():
    with pytest.raises(errors.UserError, match=r"'transformr'.*'transformer'\? Allowed: .*mlp, "):
        config.choose(MODELS, {'name': 'transformr'}, 'model')


def test_linen_fields_are_the_keys():
    class Model(nn.Module):
        width: int

    assert config.build(Model, {'width': 3}, 'model').width == 3
    for key in ('parent', 'name'):
        with pytest.raises(errors.UserError, match='Allowed: width'):
            config.build(Model, {'width': 3, key: None}, 'model')


def test_round_trip_through_json(tmp_path):
    original = ml_collections.ConfigDict({'a': {'b': (1, 2.5), 'c': None}, 'd': 'x', 'e': {}})
    path = tmp_path / 'config.json'
    path.write_text(json.dumps(config.to_plain(original)))
    back = config.read(path)
    assert config.to_plain(back) == {'a': {'b': [1, 2.5], 'c': None}, 'd': 'x', 'e': {}}
    assert config.differences(original, back) == {}
    assert config.flatten(original) == {'a.b': [1, 2.5], 'a.c': None, 'd': 'x', 'e': {}}


def test_differences_are_dotted():
    old, new = {'a': {'b': 1, 'c': 2}, 'd': 3}, {'a': {'b': 1, 'c': 5, 'e': 6}}
    assert config.differences(old, new) == {'a.c': (2, 5), 'a.e': (None, 6), 'd': (3, None)}


def test_load_takes_a_variant(tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text(
        'import ml_collections\n'
        'def get_config(arg=""):\n'
        '    return ml_collections.ConfigDict({"arg": arg}).lock()\n'
    )
    assert config.load(str(file)).arg == ''
    assert config.load(f'{file}:some/path.txt').arg == 'some/path.txt'
    with pytest.raises(errors.UserError, match='does not exist'):
        config.load(str(tmp_path / 'other.py'))


def _variants():
    for file in sorted(CONFIGS.glob('*.py')):
        if file.name != 'common.py':
            namespace = {}
            config.make_neighbours_importable(str(file))
            exec(file.read_text(), namespace)
            for variant in ('', *namespace.get('VARIANTS', ())):
                yield f'{file}:{variant}'


# Of tasks that learn the shapes of a batch from its data; any others take an image.
BATCHES = {
    'clip': dict(
        inputs=jnp.zeros((1, 32, 32, 3)),
        tokens=jnp.zeros((1, 40), int),
        segment_ids=jnp.ones((1, 40), int),
    ),
    'graph': dict(inputs=jnp.zeros((1, 8, 5)), edges=jnp.zeros((1, 6, 2), int)),
    'recommend_ranking': dict(inputs=jnp.zeros((1, 4)), categories=jnp.zeros((1, 2), int)),
    'recommend_retrieval': dict(
        inputs=jnp.zeros((1, 4), int), users=jnp.zeros(1, int), targets=jnp.zeros(1, int)
    ),
    'video': dict(inputs=jnp.zeros((1, 8, 32, 32, 3))),
}


@pytest.mark.parametrize('spec', list(_variants()), ids=lambda spec: spec.split('/')[-1])
def test_every_config_is_fully_typed(spec):
    loaded = config.load(spec)
    assert loaded.is_locked
    for section in experiment.SECTIONS:  # so that the command line can set what is in them
        assert isinstance(loaded[section], ml_collections.ConfigDict)
    settings = experiment.from_config(loaded)
    task = experiment.make_task(settings)
    if hasattr(task, 'example_shapes'):
        shapes = task.example_shapes()
        batch = {name: jnp.zeros((1, *shape.shape), shape.dtype) for name, shape in shapes.items()}
    else:
        side = getattr(task, 'image_size', 0) or 32
        image = dict(inputs=jnp.zeros((1, side, side, 3)))
        batch = BATCHES.get(spec.split('/')[-1].split('.')[0], image)
    params = jax.eval_shape(task.init, jax.random.key(0), batch)['params']
    given = {'params': params, 'total_steps': settings.total_steps}
    config.build(optimizers.make_optimizer, settings.optimizer, 'optimizer', **given)
    json_round_trip = ml_collections.ConfigDict(json.loads(json.dumps(config.to_plain(loaded))))
    again = experiment.from_config(json_round_trip)
    assert experiment.make_task(again).model == task.model


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'model': None}, r'config\.model = None must be a section'),
        ({'optimizer': {'learning_rate': 1.0}}, r'config\.optimizer lacks: algorithm, schedule'),
        (
            {'data': {'train': {'name': 'mixture'}, 'evals': {}}},
            r'config\.data\.train lacks: sources',
        ),
        (
            {'data': {'train': {'name': 'digits'}, 'evals': 'x'}},
            r"config\.data\.evals = 'x' must be",
        ),
        ({'checkpoint': None}, r'config\.checkpoint = None must be a section'),
        ({'model': {'name': 'transformer', 'moe': 8}}, r'config\.model\.moe = 8 must be a section'),
        (
            {'task': {'name': 'classification', 'augment': 'flip'}},
            r"config\.task\.augment = 'flip' must be a section",
        ),
    ],
)
def test_sections_that_are_not_there_are_named(change, message):
    with pytest.raises(errors.UserError, match=message):
        experiment.resolved(_digits() | change)
    with pytest.raises(errors.UserError, match='config lacks: model, task, optimizer, data'):
        experiment.resolved({})


def test_a_section_within_one_that_is_not_there_is_named():
    whole = experiment.resolved(_digits() | {'task': {'name': 'sound_classification'}})
    with pytest.raises(errors.UserError, match=r'config\.task lacks: sound'):
        experiment.make_task(experiment.from_config(whole))


@pytest.mark.parametrize('order', [1, -1])
def test_a_new_name_drops_no_override(order):
    changed = ml_collections.ConfigDict(
        {'a': {'name': 'x', 'old': 1, 'part': {'name': 'y', 'k': 2}}}
    )
    overrides = ['a.name=z', 'a.b1=0.5', 'a.part={"name": "y", "k": 3}']
    config.set_fields(changed, overrides[::order])
    assert changed.to_dict() == {'a': {'name': 'z', 'b1': 0.5, 'part': {'name': 'y', 'k': 3}}}


def _digits():
    return config.to_plain(config.load(str(CONFIGS / 'digits_mlp.py:tiny')))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'btch_size': 3}, "Unknown key in config 'btch_size'. Did you mean 'batch_size'"),
        ({'mesh': {'fdsp': 2}}, r"key in config\.mesh 'fdsp'. Did you mean 'fsdp'"),
        ({'total_steps': 0}, r'config\.total_steps = 0 must be at least 1'),
        ({'log_every': -1}, r'config\.log_every = -1 must be at least 1'),
        ({'accumulate': 7}, 'not divisible'),
        ({'parallel': 'threads'}, r'config\.parallel'),
        ({'checkpoint': {'every': 0}}, r'config\.checkpoint\.every'),
        ({'data': {}}, r'config\.data lacks: train, evals'),
    ],
)
def test_mistakes_in_an_experiment(change, message):
    with pytest.raises(errors.UserError, match=message):
        experiment.from_config(_digits() | change)


def test_batch_must_divide_over_devices():
    settings = experiment.from_config(_digits() | {'accumulate': 16})
    experiment.check_batch(settings, 4)
    with pytest.raises(errors.UserError, match='does not divide over the 8'):
        experiment.check_batch(settings, 8)


def test_only_execution_keys_may_differ_on_resume():
    old, new = _digits(), _digits()
    new['mesh'] = {'data': 2, 'fsdp': 4}
    new['log_every'] = 7
    new['checkpoint'] |= {'every': 3, 'keep_last': 9}
    new['data'] |= {'threads': 0, 'buffer': 1, 'workers': 2}
    assert experiment.blocking_differences(old, new) == {}
    new['batch_size'] = 32
    new['data'] = new['data'] | {'train': {'name': 'digits', 'split': 'valid'}}
    new['optimizer'] = new['optimizer'] | {'learning_rate': 0.5}
    assert set(experiment.blocking_differences(old, new)) == {
        'batch_size',
        'data.train.split',
        'optimizer.learning_rate',
    }


def test_a_mixture_names_each_source_and_its_weight():
    digits = {'name': 'digits', 'split': 'train'}
    mixture = {'name': 'mixture', 'sources': {'a': digits, 'b': digits}}
    given = config.load(f'{CONFIGS}/digits_mlp.py').to_dict()

    def sources(weights):
        given['data']['train'] = mixture | {'weights': weights}
        return experiment.training_sources(experiment.from_config(given))

    with pytest.raises(errors.UserError, match='must name the same'):
        sources({'b': 1.0})
    (one, first), (other, second) = sources({'a': 2, 'b': 1.0})
    assert (first, second) == (2.0, 1.0)
    assert len(pipeline.concatenated([one, other])) == 2 * len(one)
    kept = experiment.resolved(given)
    assert kept['data']['train']['sources']['a'] == digits
    assert experiment.resolved(kept) == kept
