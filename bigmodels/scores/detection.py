"""Average precision of detected boxes, as COCO defines it (Lin et al. 2014), by pycocotools.

Axes: N images, K found boxes of one, M true boxes of one.
"""

import contextlib
import io

import numpy as np

from bigmodels import errors

FIGURES = ('map', 'map50', 'map75')


def average_precision(
    found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], num_classes: int
) -> np.ndarray:
    """The precision averaged over 101 recalls, of each class at each overlap.

    Of an image the 100 best boxes of a class count. Boxes are (left, top, right, bottom) in pixels.

    Args:
      found: 'boxes' [N, K, 4], 'labels' int [N, K], 'scores' [N, K], 0 where there is no box.
      wanted: 'boxes' [N, M, 4], 'labels' int [N, M], -1 where there is no box, and 'ignored' bool
        [N, M]: as COCO's crowds, of which any part may be found any number of times.

    Returns:
      float64 [10, num_classes]: at intersections over union of at least 0.5, 0.55, ..., 0.95; NaN
      for a class without a true box.

    Raises:
      UserError: if pycocotools is not there.
    """
    tool, evaluation = load_pycocotools()
    truth, answers = tool(), tool()
    truth.dataset = _dataset(wanted, wanted['labels'] >= 0, num_classes)
    answers.dataset = _dataset(found, found['scores'] > 0, num_classes)
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of every step
        truth.createIndex()
        answers.createIndex()
        run = evaluation(truth, answers, 'bbox')
        run.evaluate()
        run.accumulate()
    precision = run.eval['precision'][:, :, :, 0, -1]  # [overlaps, recalls, classes]
    known = (precision > -1).all(1)
    return np.where(known, precision.mean(1), np.nan)


def figures(
    found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], num_classes: int
) -> dict[str, float]:
    """The FIGURES of a set: means over the classes that occur, and for 'map' over the overlaps."""
    each = average_precision(found, wanted, num_classes)
    each = each[:, ~np.isnan(each).all(0)]
    if not each.size:
        return dict.fromkeys(FIGURES, float('nan'))
    return {
        'map': float(each.mean()),
        'map50': float(each[0].mean()),
        'map75': float(each[5].mean()),
    }


def load_pycocotools():
    """(COCO, COCOeval) of the library; raises UserError if it is not there."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise errors.UserError(
            "Average precision needs the library 'pycocotools': pip install 'bigmodels[detection]'."
        ) from error
    return COCO, COCOeval


def _dataset(given: dict[str, np.ndarray], real: np.ndarray, num_classes: int) -> dict:
    """Boxes as COCO's JSON files have them; numbers begin at 1, as 0 is none to pycocotools."""
    annotations = []
    for image, i in np.argwhere(real):
        left, top, right, bottom = map(float, given['boxes'][image, i])
        width, height = right - left, bottom - top
        annotations.append(
            {
                'id': len(annotations) + 1,
                'image_id': int(image),
                'category_id': int(given['labels'][image, i]),
                'bbox': [left, top, width, height],
                'area': width * height,
                'iscrowd': int('ignored' in given and given['ignored'][image, i]),
                'score': float(given['scores'][image, i]) if 'scores' in given else 1.0,
            }
        )
    images = [{'id': i} for i in range(len(real))]
    categories = [{'id': c} for c in range(num_classes)]
    return {'images': images, 'annotations': annotations, 'categories': categories}
