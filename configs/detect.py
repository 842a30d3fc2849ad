"""A detector of blood cells by their centres: a narrow ResNet-18 and a feature pyramid.

    python -m bigmodels.main --config=configs/detect.py                    # by objects' centres
    python -m bigmodels.main --config=configs/detect.py:set                # by one-to-one matching
    python -m bigmodels.evaluate --workdir=runs/detect --pictures=overlays
    python -m bigmodels.predict --workdir=runs/detect --input=photographs --pictures=drawn

Data: `bccd/bccd_voc.zip`, 205 images to train on, 87 for validation, 72 to test: red and white
cells and platelets. A set of one's own: `name='pascal_voc'` with a folder, or `name='coco',
path='val2017', annotations='instances_val2017.json'`; its classes in task.classes, as many as
model.num_classes. Needs `pip install -e '.[detection]'` for the average precision.

Cost: two CPU cores, 35 min beside other work.
Result: mAP 0.886 at an overlap of half, 0.600 over all overlaps, on the 72 test images; 0.897 and
0.600 on those for validation. `set`, without suppression of overlaps, is not measured yet.
"""

from configs import common

VARIANTS = ('set', 'tiny')


def get_config(variant: str = ''):
    """The default, `set` without suppression of overlaps, or `tiny` for tests."""
    common.check_variant(variant, VARIANTS)
    config = common.get_config()
    config.model = dict(
        name='detector',
        num_classes=3,
        width=64,
        backbone=dict(block='basic', stage_sizes=(2, 2, 2, 2), stage_widths=(32, 64, 128, 256)),
    )
    config.task = dict(
        name='detection',
        classes=('RBC', 'WBC', 'Platelets'),
        image_size=(240, 320),
        max_boxes=40,
        mean=183.0,
        std=22.0,
        augment=dict(
            flip=0.5,
            flip_vertical=0.5,
            scale=0.25,
            shift=0.15,
            brightness=0.1,
            contrast=0.2,
            saturation=0.2,
        ),
        overlays=True,
    )
    source = dict(name='pascal_voc', path=common.data_path('bccd/bccd_voc.zip'), drop_empty=True)
    config.data.train = source | dict(split='train')
    config.data.evals = {name: source | dict(split=name) for name in ('val', 'test')}
    config.batch_size = 8
    config.total_steps = 2000
    config.eval_every = 500
    config.log_every = 20
    config.checkpoint.every = 250
    config.ema_decay = 0.995
    config.optimizer.learning_rate = 5e-3
    config.optimizer.algorithm = dict(name='muon', ns_steps=3)
    config.optimizer.schedule = dict(name='linear', warmup_steps=100)
    if variant == 'set':
        config.task.update(assignment='set', box_weight=1.0, max_overlap=1.0)
    if variant == 'tiny':
        config = common.tiny(config)
        config.model.width = 8
        config.model.backbone.stage_sizes = (1, 1, 1)
        config.model.backbone.stage_widths = (8, 8, 16)
        config.task.image_size = (48, 64)
    return config.lock()
