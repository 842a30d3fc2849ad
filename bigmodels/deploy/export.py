"""The command that writes a run as files which need none of this code.

python -m bigmodels.deploy.export --workdir=runs/mnist_lenet --format=stablehlo --to=exported

stablehlo      program.bin, `predict` as an artefact of `jax.export` for CPUs, NVIDIA's GPUs and
               TPUs; params.npz, its first argument
onnx           model.onnx, the same with its parameters, for programs such as onnxruntime; of any
               batch, and of tokens of one length, --length or that of training
safetensors    model.safetensors, every array by its name

Beside each: export.json, which says what goes in and comes out; config.json; preprocessing/, what
turns raw input into these arrays, as the run has it. To call a program, with JAX, NumPy and the
flatbuffers that JAX reads artefacts with:

    program = jax.export.deserialize(open('exported/program.bin', 'rb').read())
    answers = program.call(dict(np.load('exported/params.npz')), {'inputs': images})
"""

import argparse
import contextlib
import importlib.util
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.export
import numpy as np
from safetensors.numpy import save_file

from bigmodels import errors, rundir, runs, sharding, trees
from bigmodels.deploy import onnx_export

PLATFORMS = ('cpu', 'cuda', 'tpu')
# What `parts.layers.rows_first` asks of the compiler for CPUs. It calls no code, so that later
# versions lack nothing: JAX merely does not promise its name.
LAYOUTS = jax.export.DisabledSafetyCheck.custom_call('LayoutConstraint')
PROGRAM, PARAMS, TENSORS = 'program.bin', 'params.npz', 'model.safetensors'
ONNX = 'model.onnx'
DESCRIPTION = 'export.json'
WIDER = {'int4': 'int8', 'float8_e4m3fn': 'float16', 'bfloat16': 'float32'}


def variables_of(run: runs.Run) -> dict[str, np.ndarray]:
    """Params and model state by name: 'params/embed/embedding', 'batch_stats/norm/mean'.

    Values of a type that NumPy's files lack are in one that has each of them, see WIDER.
    """
    leaves = trees.flatten_named(jax.device_get({'params': run.params, **run.model_state}))
    return {name: leaf.astype(WIDER.get(str(leaf.dtype), leaf.dtype))
            for name, leaf in leaves.items()}  # fmt: skip


def make_predict(run: runs.Run) -> Callable[[Mapping, Mapping], Any]:
    """(what `variables_of` gives, batch) -> predictions, pure."""
    structure = jax.tree.structure({'params': run.params, **run.model_state})
    names = tuple(variables_of(run))

    def predict(variables: Mapping, batch: Mapping) -> Any:
        tree = jax.tree.unflatten(structure, [variables[name] for name in names])
        return run.task.predict(tree.pop('params'), tree, batch)

    return predict


class _Recording(dict):
    """A batch that keeps the names of what is taken from it."""

    def __init__(self, batch: Mapping):
        super().__init__(batch)
        self.taken = set()

    def __getitem__(self, name: str) -> Any:
        self.taken.add(name)
        return super().__getitem__(name)


def input_shapes(run: runs.Run, batch_size: int = 0, length: int = 0) -> dict[str, Any]:
    """The shapes of what `predict` cannot do without, of the arrays of a batch.

    Args:
      batch_size: 0 for any, the symbol b.
      length: of sequences of tokens; 0 for any up to the model's, the symbol l.
    """
    shapes = rundir.batch_shapes(run.workdir, 1)
    taken = set()

    def predict(params, model_state, batch):
        recording = _Recording(batch)
        predictions = run.task.predict(params, model_state, recording)
        taken.update(recording.taken)
        return predictions

    jax.eval_shape(predict, run.params, run.model_state, shapes)
    trained = getattr(run.task, 'sequence_length', None)
    of_tokens = {name for name in taken if shapes[name].shape[1:] == (trained,)}
    constraints = ['b >= 1']
    if of_tokens:
        constraints += ['l >= 1', f'l <= {getattr(run.model, "max_length", trained)}']
    scope = jax.export.SymbolicScope(constraints)
    rows = batch_size or jax.export.symbolic_shape('b', scope=scope)[0]
    columns = length or jax.export.symbolic_shape('l', scope=scope)[0]

    def shape_of(name: str) -> jax.ShapeDtypeStruct:
        _, *rest = shapes[name].shape
        rest = [columns] if name in of_tokens else rest
        return jax.ShapeDtypeStruct((rows, *rest), shapes[name].dtype)

    return {name: shape_of(name) for name in shapes if name in taken}


def of_no_platform() -> contextlib.AbstractContextManager:
    """A context in which programs are traced without kernels that this accelerator alone has."""
    if jax.default_backend() == 'cpu':
        return contextlib.nullcontext()
    return jax.set_mesh(sharding.make_mesh(sharding.MeshShape(), jax.devices('cpu')[:1]))


def _check_answers(task: Any) -> None:
    if not hasattr(task, 'predict'):
        raise errors.UserError(f'{type(task).__name__} has no predict that could be exported.')


def exported_program(run: runs.Run, batch_size: int = 0, length: int = 0) -> jax.export.Exported:
    """`make_predict` for PLATFORMS, of shapes as `input_shapes` has them.

    Raises:
      UserError: for a task that does not answer, or a program whose shapes must be numbers.
    """
    _check_answers(run.task)
    variables = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables_of(run)
    )
    shapes = input_shapes(run, batch_size, length)
    export = jax.export.export(
        jax.jit(make_predict(run)), platforms=PLATFORMS, disabled_checks=[LAYOUTS]
    )
    try:
        with of_no_platform():
            return export(variables, shapes)
    except (TypeError, jax.errors.InconclusiveDimensionOperation) as error:
        if batch_size and length:
            raise
        raise errors.UserError(
            f'The program of {type(run.task).__name__} needs shapes that are numbers: give '
            f'--batch_size, and --length for tokens. {str(error).splitlines()[0]}'
        ) from error


def export(
    run: runs.Run, format: str, folder: pathlib.Path, batch_size: int = 0, length: int = 0
) -> dict[str, Any]:
    """Writes a run in one of FORMATS; returns the description that lies beside it.

    Raises:
      UserError: if the folder exists, and see `exported_program`.
    """
    if folder.exists():
        raise errors.UserError(f'{folder} exists: choose another --to, or remove it.')
    described, files = FORMATS[format](run, batch_size, length)
    folder.mkdir(parents=True)
    for name, write in files.items():
        write(folder / name)
    shutil.copy(run.workdir / rundir.CONFIG, folder)
    shutil.copytree(run.workdir / rundir.PREPROCESSING, folder / rundir.PREPROCESSING)
    facts = {'task': run.config['task']['name'], 'step': run.step, 'format': format}
    rundir.write_json(folder / DESCRIPTION, facts | described)
    return facts | described


# Each: (run, batch_size, length) -> (what is said of it, {file name: function that writes it}).


def _stablehlo(run: runs.Run, batch_size: int, length: int) -> tuple[dict, dict]:
    if importlib.util.find_spec('flatbuffers') is None:
        raise errors.UserError(
            "JAX's artefacts need the library 'flatbuffers': pip install 'bigmodels[export]'."
        )
    program = exported_program(run, batch_size, length)
    [_, inputs], _ = jax.tree.unflatten(program.in_tree, program.in_avals)
    outputs = trees.flatten_named(jax.tree.unflatten(program.out_tree, program.out_avals))
    described = {
        'platforms': PLATFORMS,
        'inputs': {name: str(shape) for name, shape in inputs.items()},
        'outputs': {name or 'answer': str(shape) for name, shape in outputs.items()},
    }
    return described, {
        PROGRAM: lambda path: path.write_bytes(program.serialize()),
        PARAMS: lambda path: np.savez(path, **variables_of(run)),
    }


def _safetensors(run: runs.Run, batch_size: int, length: int) -> tuple[dict, dict]:
    return {}, {TENSORS: lambda path: save_file(variables_of(run), path)}


def _onnx(run: runs.Run, batch_size: int, length: int) -> tuple[dict, dict]:
    _check_answers(run.task)
    shapes = input_shapes(run, batch_size, length or getattr(run.task, 'sequence_length', 0))
    predict, variables = make_predict(run), variables_of(run)
    with of_no_platform():
        content, outputs = onnx_export.converted(lambda batch: predict(variables, batch), shapes)
    inputs = {name: onnx_export.described(shape) for name, shape in shapes.items()}
    return {'inputs': inputs, 'outputs': outputs}, {ONNX: lambda path: path.write_bytes(content)}


FORMATS = {'stablehlo': _stablehlo, 'onnx': _onnx, 'safetensors': _safetensors}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=__doc__.split('\n\n', 2)[2], allow_abbrev=False,
    )  # fmt: skip
    runs.add_run(parser)
    parser.add_argument('--format', choices=FORMATS, default='stablehlo')
    parser.add_argument('--to', type=pathlib.Path, required=True, help='the folder to write')
    parser.add_argument('--batch_size', type=int, default=0, help='default: any')
    parser.add_argument('--length', type=int, default=0, help='of tokens; default: any')
    a = parser.parse_args()
    runs.configure_process()
    run = runs.open_run(a.workdir, a.step, trust=a.trust)
    description = export(run, a.format, a.to, a.batch_size, a.length)
    print(f'{a.to} holds step {run.step} of {a.workdir} as {a.format}.')
    for way in ('inputs', 'outputs'):
        for name, shape in description.get(way, {}).items():
            print(f'{way[:-1]:7} {name}: {shape}')


if __name__ == '__main__':
    errors.exit_on_user_error(main)
