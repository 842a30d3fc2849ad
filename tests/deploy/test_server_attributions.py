"""What spoke for answers, over HTTP: as by the library, in the shapes of the input."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from bigmodels import config, runs, train
from bigmodels.data import images
from bigmodels.interpret import explanations
from tests import commands, serving
from tests.data import image_files

PNG = image_files.encoded(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))


def test_images(tmp_path):
    path = str(commands.ROOT / 'configs/digits_mlp.py:tiny')
    train.train(config.load(path, []), tmp_path / 'run')
    with serving.served(tmp_path / 'run', tmp_path / 'log') as server:
        record = {'image': base64.b64encode(PNG).decode()}
        status, answer = server.post('/v1/attributions', {'inputs': [record, record]})
        assert status == 200, answer
        one, again = answer['attributions']
        assert one == again
        run = runs.open_run(tmp_path / 'run')
        wanted = explanations.Explainer(run, [answer['method']])(
            '', {'image': images.decode(PNG, '')}
        )
        assert one['answer'] == pytest.approx(wanted.answer, abs=1e-5)
        [values] = wanted.maps.values()
        np.testing.assert_allclose(one['values'], values, rtol=1e-3, atol=1e-4)
        picture = base64.b64decode(one['picture'].removeprefix('data:image/png;base64,'))
        assert Image.open(io.BytesIO(picture)).size == (8, 8)
        status, answer = server.post('/v1/attributions', {'inputs': [{'image': 'bm90aGluZw=='}]})
        assert (status, answer['error']['param']) == (400, 'inputs.0')
        serving.check_description(server)
        with serving.browsed(server) as page:
            file = {'name': 'a.png', 'mimeType': 'image/png', 'buffer': PNG}
            page.locator('#file').set_input_files(file)
            page.get_by_role('button', name='Why?').click()
            page.get_by_alt_text('What spoke for the answer').wait_for()
            page.screenshot(path=tmp_path / 'page.png')


@pytest.mark.slow
def test_texts(tmp_path):
    (tmp_path / 'texts.tsv').write_text('text\tlabel\n' + 'good\tyes\nbad\tno\n' * 8)
    overrides = [
        f'data.{split}.{field}'
        for split in ('train', 'evals.dev', 'evals.test')
        for field in (f'path={tmp_path}/texts.tsv', 'columns=()')
    ]
    overrides += ["task.classes=('yes','no')", 'task.tokenizer.name=bytes', 'batch_size=8']
    path = str(commands.ROOT / 'configs/sst2_lstm.py:tiny')
    train.train(config.load(path, overrides), tmp_path / 'run')
    with serving.served(tmp_path / 'run', tmp_path / 'log') as server:
        status, answer = server.post('/v1/attributions', {'inputs': [{'text': 'so good'}]})
        assert status == 200, answer
        [one] = answer['attributions']
        assert one['tokens'] == list('so good')
        assert len(one['values']) == 7
        assert one['answer']['label'] in ('yes', 'no')
