"""Explanations as one HTML page that needs no network: pictures are in it, light and dark."""

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from bigmodels import runs, trees
from bigmodels.interpret.explanations import Explanation

FOR, AGAINST = np.float32([0.86, 0.15, 0.12]), np.float32([0.12, 0.35, 0.90])
SIDE = 240  # pixels that the longer side of a small picture is drawn with, at least
LENS_TOKENS = 16  # the last ones of a text, for which layers are shown
NOTES = {
    'gradient': 'how strongly the answer changes with each place',
    'smooth_grad': 'the same, as the mean over inputs with noise',
    'input_x_gradient': 'each value times its gradient',
    'integrated_gradients': 'shares of the answer, which add up to its difference from a neutral '
    'input',
    'occlusion': 'by how much the answer falls when a part is covered',
    'grad_cam': 'where a layer\u2019s features speak for the answer',
    'attention_rollout': 'how much of each place reaches what is classified, by attention alone',
}
STYLE = """
:root {
  --paper: #fbfaf7; --card: #ffffff; --ink: #1d2328; --faint: #5d666e; --line: #d9d6cd;
  --for: #e0523f; --against: #4a7fe0; --bar: #cfe3ee;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181b; --card: #1c2226; --ink: #e6e8e6; --faint: #9aa5ad; --line: #343c42;
    --for: #b8402f; --against: #3a63b4; --bar: #24485c;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
p, figcaption { color: var(--faint); margin: .25rem 0; }
figcaption { font-size: .85rem; }
figcaption b { color: var(--ink); font-weight: 600; }
article { background: var(--card); border: 1px solid var(--line); border-radius: .75rem;
  padding: 1rem; margin: 1rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .5rem 0; }
dt { font-weight: 600; }
dd { margin: 0; overflow-wrap: anywhere; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: .75rem 0 0; }
.row figure { flex: 0 0 16rem; max-width: 100%; }
.row .wide { flex-basis: 100%; }
.key span, .likely span { color: var(--ink); }
img { image-rendering: pixelated; max-width: 100%; border-radius: .35rem; display: block; }
.text { font: .92rem/1.9 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.text span, .key span { border-radius: .2rem; padding: .1rem 0; }
.up { background: color-mix(in srgb, var(--for) var(--share), transparent); }
.down { background: color-mix(in srgb, var(--against) var(--share), transparent); }
.key span { padding: .1rem .5rem; --share: 60%; }
table { border-collapse: collapse; font-size: .85rem; display: block; overflow-x: auto; }
td, th { text-align: left; padding: .15rem .5rem; border-bottom: 1px solid var(--line);
  font-weight: normal; white-space: pre; }
td code, th code { font: .85rem ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .15rem .75rem;
  align-items: center; font-size: .9rem; }
.bars div { position: relative; height: .8rem; min-width: 8rem;
  background: linear-gradient(var(--line), var(--line)) 50% 0 / 1px 100% no-repeat; }
.bars div span { position: absolute; top: 0; bottom: 0; border-radius: .15rem; --share: 80%; }
.likely span { display: inline-block; margin-right: .4rem; padding: 0 .5rem; border-radius: .3rem;
  background: color-mix(in srgb, var(--bar) var(--share), transparent); white-space: pre; }
"""


def page(run: runs.Run, explanations: Sequence[Explanation], left_out: int = 0) -> str:
    """The whole page, as HTML."""
    facts = {
        **run.task.facts(),
        'task': run.config['task']['name'].replace('_', ' '),
        'parameters': f'{trees.count(run.params):,}',
        'step': f'{run.step:,}',
    }
    name = _escaped(run.workdir.name)
    more = f' Of {left_out} more nothing is shown.' if left_out else ''
    return '\n'.join(
        [
            '<!doctype html>',
            '<html lang="en">',
            '<head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f'<title>{name}: what spoke for its answers</title>',
            f'<link rel="icon" href="data:,"><style>{STYLE}</style></head>',
            f'<body><main><h1>{name}: what spoke for its answers</h1>',
            _list(facts),
            '<p class="key"><span class="up">for the answer</span> '
            '<span class="down">against it</span>, each picture on a scale of its own.'
            f'{more}</p>',
            *map(_article, explanations),
            '</main></body></html>\n',
        ]
    )


def _article(one: Explanation) -> str:
    answer = {
        name: f'{value:.4g}' if isinstance(value, float) else str(value)
        for name, value in one.answer.items()
    }
    show = {'image': _pictures, 'sound': _pictures, 'table': _bars}.get(one.kind, _texts)
    parts = [f'<article><h2>{_escaped(one.where)}</h2>', _list(answer)]
    if one.likely:
        likely = ' '.join(
            f'<span style="--share:{100 * p:.0f}%">{_token(name)} {p:.3f}</span>'
            for name, p in one.likely
        )
        parts.append(f'<p class="likely">{likely}</p>')
    parts += [*show(one), _lens(one) if one.lens else '', '</article>']
    return '\n'.join(parts)


def _pictures(one: Explanation) -> list[str]:
    """The input, and each map over it; log-mel features with time to the right."""
    shown, maps = np.asarray(one.shown), one.maps
    wide = ' class="wide"' if one.kind == 'sound' and len(shown) > 2 * shown.shape[1] else ''
    if one.kind == 'sound':
        shown = shown.T[::-1]
        maps = {method: values.T[::-1] for method, values in maps.items()}
    pixels = scaled(np.atleast_2d(shown))
    figures = [_figure(_image(pixels, 'the input'), '<b>input</b>', wide)]
    for method, values in maps.items():
        drawn = _image(over(pixels, np.atleast_2d(values)), f'{method} of the input')
        figures.append(_figure(drawn, _caption(method), wide))
    return ['<div class="row">', *figures, '</div>']


def _texts(one: Explanation) -> list[str]:
    """Tokens, each on the colour of what it counts."""
    figures = []
    for method, values in one.maps.items():
        most = max(float(np.abs(values).max(initial=0)), 1e-30)
        spans = [
            f'<span class="{"up" if value >= 0 else "down"}" title="{value:.4g}" '
            f'style="--share:{100 * abs(value) / most:.0f}%">{_escaped(token)}</span>'
            for token, value in zip(one.shown, values.tolist(), strict=True)
        ]
        figures.append(_figure(f'<div class="text">{"".join(spans)}</div>', _caption(method)))
    return figures


def _bars(one: Explanation) -> list[str]:
    """Columns of a table, those that count most first."""
    figures = []
    for method, values in one.maps.items():
        most = max(float(np.abs(values).max(initial=0)), 1e-30)
        rows = []
        for i in np.argsort(-np.abs(values)).tolist():
            value = float(values[i])
            side = 'left' if value >= 0 else 'right'
            rows.append(
                f'<span>{_escaped(one.shown[i])}</span><div><span class="'
                f'{"up" if value >= 0 else "down"}" style="{side}:50%;width:'
                f'{50 * abs(value) / most:.1f}%"></span></div><span>{value:.3g}</span>'
            )
        figures.append(_figure(f'<div class="bars">{"".join(rows)}</div>', _caption(method)))
    return figures


def _lens(one: Explanation) -> str:
    """The next token that each layer would say, behind the last tokens of the text."""
    start = max(len(one.shown) - LENS_TOKENS, 0)
    head = ''.join(f'<th><code>{_token(token)}</code></th>' for token in one.shown[start:])
    rows = []
    for number, layer in reversed(list(enumerate(one.lens))):
        cells = ''.join(
            f'<td class="up" style="--share:{70 * p:.0f}%" title="{p:.3f}">'
            f'<code>{_token(token)}</code></td>'
            for token, p in layer[start:]
        )
        rows.append(f'<tr><th>layer {number}</th>{cells}</tr>')
    body = f'<table><tr><th></th>{head}</tr>{"".join(rows)}</table>'
    return _figure(body, '<b>logit lens</b>: the next token, were this layer the last one')


def scaled(values: np.ndarray) -> np.ndarray:
    """A picture [H, W] or [H, W, C] as float32 [H, W, 3] from 0 to 1."""
    values = np.asarray(values, np.float32)
    values = values[..., None] if values.ndim == 2 else values[..., :3]
    low, high = float(values.min()), float(values.max())
    return np.broadcast_to((values - low) / max(high - low, 1e-30), (*values.shape[:2], 3))


def over(pixels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A picture in grey under the colours of what speaks for an answer and what against it.

    Args:
      pixels: [H, W, 3] from 0 to 1.
      values: [H, W], drawn on the scale of the largest.
    """
    share = values / max(float(np.abs(values).max()), 1e-30)
    grey = 0.25 + 0.6 * pixels.mean(-1, keepdims=True)
    colour = np.where(share[..., None] >= 0, FOR, AGAINST)
    alpha = 0.9 * np.abs(share)[..., None] ** 0.7  # small ones are still to be seen
    return (1 - alpha) * grey + alpha * colour


def data_url(pixels: np.ndarray) -> str:
    """A picture [H, W, 3] from 0 to 1 as the URL of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(np.uint8(255 * np.clip(pixels, 0, 1) + 0.5)).save(file, 'PNG')
    return f'data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}'


def _image(pixels: np.ndarray, alt: str) -> str:
    scale = max(1, round(SIDE / max(pixels.shape[:2])))
    if pixels.shape[1] > 2 * pixels.shape[0]:  # of sound
        scale = max(1, 900 // pixels.shape[1])
    height, width = (scale * n for n in pixels.shape[:2])
    return f'<img src="{data_url(pixels)}" width="{width}" height="{height}" alt="{_escaped(alt)}">'


def _caption(method: str) -> str:
    return f'<b>{method.replace("_", " ")}</b>: {NOTES[method]}'


def _figure(body: str, caption: str, attributes: str = '') -> str:
    return f'<figure{attributes}>{body}<figcaption>{caption}</figcaption></figure>'


def _list(facts: dict[str, str]) -> str:
    items = ''.join(f'<dt>{_escaped(k)}</dt><dd>{_escaped(v)}</dd>' for k, v in facts.items())
    return f'<dl>{items}</dl>'


def _token(text: str) -> str:
    """A token with what cannot be seen written out."""
    return _escaped(text.replace('\n', '\u21b5').replace('\t', '\u21e5').replace(' ', '\u2423'))


def _escaped(text: object) -> str:
    return html.escape(str(text))
