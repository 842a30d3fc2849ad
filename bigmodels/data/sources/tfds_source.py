"""TensorFlow Datasets as a random-access source, read and prepared without TensorFlow."""

import contextlib
import fcntl
import functools
import glob
import http.client
import importlib
import importlib.util
import io
import os
import pathlib
import posixpath
import shutil
import sys
import tempfile
import types
import urllib.request
import uuid
import warnings
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from bigmodels import errors
from bigmodels.data.sources import checked_index, digest

# TFDS registers the data sets of these packages only when they are imported (0.2 s for all).
_PACKAGES = (
    'image_classification',
    'question_answering',
    'ranking',
    'recommendation',
    'structured',
    'summarization',
    'text',
    'text_simplification',
    'translate',
    'video',
    'vision_language',
)
_LOCK = '.preparing.lock'  # in the folder of the data sets, where it stays


class Tfds:
    """A split of a TFDS data set, such as ('mnist', 'train[:90%]') or ('glue/sst2', 'train').

    Records are as TFDS decodes them, with `Text` features as str; other byte strings stay bytes.

    A data set that is not yet prepared in `data_dir` (default: TFDS's own, ~/tensorflow_datasets)
    is prepared there as array_record, from `manual_dir`, which holds the raw files under their
    original names; by default `downloads/NAME` in `data_dir`. With `download` files that are not
    there are fetched first; without it nothing is. TFDS compares each file with the SHA-256 that it
    has registered. A file whose content is right but whose bytes are not (an archive compressed
    anew) fails that test: `verify_checksums=False` accepts it, with a warning that names it, and
    what it holds is then the user's to answer for.
    """

    def __init__(
        self,
        dataset: str,
        split: str,
        data_dir: str | None = None,
        manual_dir: str | None = None,
        verify_checksums: bool = True,
        download: bool = False,
    ):
        builder = _find_builder(dataset, data_dir)
        if not builder.is_prepared():
            if manual_dir is None and not download:
                raise errors.UserError(
                    f'The TFDS data set {dataset!r} is not prepared in {builder.data_dir}. Set '
                    'download=True to fetch its files and prepare it there, manual_dir to a folder '
                    'that has them, or data_dir to where it has been prepared.'
                )
            with _alone(_root(builder)):
                builder = _find_builder(dataset, data_dir)  # another process may have prepared it
                if not builder.is_prepared():
                    _prepare(builder, manual_dir, verify_checksums, download)
        try:
            self._records = builder.as_data_source(split)
        except NotImplementedError as error:
            raise errors.UserError(
                f'{builder.data_dir} is stored as {builder.info.file_format.value}, which allows '
                'no random access. Prepare it as array_record in another data_dir, or convert it '
                'with `tfds convert_format`.'
            ) from error
        except ValueError as error:
            # TFDS's own message names the split that came and those that exist.
            raise errors.UserError(f'{dataset!r} has no such split {split!r}: {error}') from error
        self._arguments = (dataset, split, data_dir)
        self._name = f'{builder.info.full_name} {split}'
        self._features = builder.info.features

    def __reduce__(self):
        # Opened again where it is unpickled: a worker process may not have the builder's class.
        return Tfds, self._arguments

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        i = checked_index(index, len(self))
        try:
            return _decode_text(self._records[i], self._features)
        except UnicodeDecodeError as error:
            raise errors.UserError(
                f'{self._name}, record {i}: a text is not UTF-8: {error}.'
            ) from error

    def fingerprint(self) -> str:
        """Over the name, the metadata (with counts and bytes) and 64 records spread over the split.

        Not over the shards: they may be huge, and TFDS writes equal records in different bytes.
        """
        metadata = [self._records.dataset_info.as_json, repr(self._features)]
        sample = np.linspace(0, len(self) - 1, min(64, len(self))).astype(int)
        return digest(
            'tfds', self._name, *metadata, *(part for i in sample for part in _content(self[i]))
        )

    def describe(self) -> str:
        return f'tfds {self._name}: {len(self):,} records'


def _find_builder(dataset: str, data_dir: str | None):
    import tensorflow_datasets as tfds

    for package in _PACKAGES:
        importlib.import_module(f'tensorflow_datasets.{package}')
    name, _ = tfds.core.naming.parse_builder_name_kwargs(dataset)
    if name.namespace:
        raise errors.UserError(
            f'{dataset!r} is of the collection {name.namespace!r}, whose data sets run code of '
            'their own. Name one that TFDS itself has, or convert this one to files.'
        )
    try:
        return tfds.builder(dataset, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError as error:
        known = tfds.core.registered.list_imported_builders()
        raise errors.unknown('TFDS data set', dataset.split('/')[0].split(':')[0], known) from error


def _root(builder) -> pathlib.Path:
    """The folder of all data sets."""
    return pathlib.Path(builder.data_dir_root).expanduser()


@contextlib.contextmanager
def _alone(root: pathlib.Path) -> Iterator[None]:
    """One at a time in a folder, which is made; the others wait. See `lock.Lock`."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / _LOCK).open('a') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems have no locks
            warnings.warn(
                f'{root} cannot be locked ({error.strerror}): let no second process prepare a '
                f'data set in it meanwhile.',
                stacklevel=2,
            )
        yield


def _prepare(builder, manual_dir: str | None, verify_checksums: bool, download: bool) -> None:
    """Writes the data set into the builder's data_dir, from files of `manual_dir`."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import download_manager

    root = _root(builder)
    if manual_dir is None:
        manual_dir = str(root / 'downloads' / builder.name)
        os.makedirs(manual_dir, exist_ok=True)
    if not os.path.isdir(manual_dir):
        raise errors.UserError(f'manual_dir = {manual_dir!r} is not a folder.')
    builder._make_download_manager = functools.partial(
        _local_manager, builder, builder._make_download_manager, manual_dir, verify_checksums,
        download,
    )  # fmt: skip
    # TFDS would reuse an earlier extraction by file name alone, and MNIST's and Fashion-MNIST's
    # files have the same names: so each preparation extracts into a folder of its own.
    with tempfile.TemporaryDirectory(dir=root, prefix='.extracting-') as scratch:
        settings = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
        try:
            with _tensorflow_names(builder):
                builder.download_and_prepare(
                    download_dir=scratch, download_config=settings, file_format='array_record'
                )
        except download_manager.NonMatchingChecksumError as error:
            raise errors.UserError(
                f'{error}\nGet the registered file; if this one holds the same content in other '
                'bytes, set verify_checksums=False.'
            ) from error


def _local_manager(
    builder, make_manager, manual_dir: str, verify_checksums: bool, download: bool, **kwargs
):
    """TFDS's download manager, which finds files in `manual_dir`, or puts them there.

    TFDS's own downloads need TensorFlow.
    """
    from tensorflow_datasets.core.download import checksums
    from tensorflow_datasets.core.utils.lazy_imports_utils import promise

    manager = make_manager(**kwargs)

    def fetch(resource):
        known = manager._url_infos.get(resource.url)
        name = (known and known.filename) or posixpath.basename(urlsplit(resource.url).path)
        path = pathlib.Path(manual_dir, name)
        if not path.is_file() and not download:
            raise errors.UserError(
                f'{name!r} is not in manual_dir = {manual_dir!r}. Fetch {resource.url} and put it '
                f'there under its original name, or set download=True.'
            )
        with (
            contextlib.nullcontext(path) if path.is_file() else _fetched(resource.url, path) as got
        ):
            found = checksums.compute_url_info(got)
            if verify_checksums:
                manager._register_or_validate_checksums(resource.url, found, path)
            elif known and known != found:
                warnings.warn(f'{path} is not the registered file: {found}', stacklevel=2)
        return promise.Promise.resolve(path)

    manager._download = fetch
    if not verify_checksums:
        # A copy: TFDS shares one dict of the checksums of all data sets.
        manager._url_infos = dict(manager._url_infos)
        for url, registered in (builder.url_infos or {}).items():
            path = pathlib.Path(manual_dir, registered.filename or '')
            if path.is_file():
                found = checksums.compute_url_info(path)
                if found != registered:
                    warnings.warn(f'{path} is not the registered file: {found}', stacklevel=2)
                manager._url_infos[url] = found
    return manager


@contextlib.contextmanager
def _fetched(url: str, path: pathlib.Path) -> Iterator[pathlib.Path]:
    """What a URL has as a file, which gets its name if nothing is raised meanwhile."""
    print(f'fetching {url} to {path}', file=sys.stderr)
    partial = path.with_name(f'{path.name}.{uuid.uuid4().hex}.partial')
    try:
        try:
            with urllib.request.urlopen(url, timeout=60) as answer, partial.open('wb') as file:
                shutil.copyfileobj(answer, file)
                if answer.length:  # closed early, of which nothing is raised
                    raise OSError(f'{answer.length:,} bytes are missing')
        except (OSError, http.client.HTTPException) as error:
            raise errors.UserError(
                f'{url} cannot be fetched: {error}. Put the file into {path.parent} by hand.'
            ) from error
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _tensorflow_names(builder) -> Iterator[None]:
    """Gives the TFDS modules that prepare a data set the few names of `tf` that they call.

    Only while it is prepared, and only if TensorFlow is not installed: the lazy `tf` of the
    extractor, of the builder's module and of the helpers imported beside it becomes plain file
    access, and images given as arrays are encoded by Pillow. A builder that calls more of
    TensorFlow fails with an AttributeError that names what it called.
    """
    from tensorflow_datasets.core import features
    from tensorflow_datasets.core.download import extractor
    from tensorflow_datasets.core.utils import lazy_imports_utils

    if importlib.util.find_spec('tensorflow'):
        yield
        return
    package = type(builder).__module__.rpartition('.')[0]
    modules = [
        module
        for name, module in list(sys.modules.items())
        if (module is extractor or name.rpartition('.')[0] == package)
        and vars(module).get('tf') is lazy_imports_utils.tensorflow
    ]
    encoder = features.image_feature._ImageEncoder
    encode_image = encoder._encode_image
    tf = _file_access()
    try:
        encoder._encode_image = _encode_image
        for module in modules:
            module.tf = tf
        yield
    finally:
        encoder._encode_image = encode_image
        for module in modules:
            module.tf = lazy_imports_utils.tensorflow


def _file_access() -> types.SimpleNamespace:
    """`tf.io.gfile` and `tf.compat.as_text` over local files."""
    gfile = types.SimpleNamespace(
        GFile=open,
        exists=os.path.exists,
        isdir=os.path.isdir,
        listdir=os.listdir,
        glob=lambda pattern: sorted(glob.glob(os.fspath(pattern))),
        makedirs=functools.partial(os.makedirs, exist_ok=True),
    )
    compat = types.SimpleNamespace(
        as_text=lambda text: text.decode() if isinstance(text, bytes) else str(text)
    )
    return types.SimpleNamespace(io=types.SimpleNamespace(gfile=gfile), compat=compat)


def _encode_image(encoder, image: np.ndarray) -> bytes:
    """TFDS's encoding of an image array [height, width, channels], done by Pillow."""
    buffer = io.BytesIO()
    # Pillow wants one-channel images as [height, width].
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    Image.fromarray(pixels).save(buffer, format=encoder.encoding_format)
    return buffer.getvalue()


def _decode_text(value: Any, feature: Any) -> Any:
    """A record with the bytes of its Text features as str, and numbers and their lists as numpy."""
    from tensorflow_datasets import features

    if isinstance(feature, features.FeaturesDict):
        return {key: _decode_text(item, feature[key]) for key, item in value.items()}
    if isinstance(feature, features.Sequence) and not isinstance(value, dict):
        feature = feature.feature
        if isinstance(feature, features.Text):
            return [_decode_text(item, feature) for item in value]
    elif isinstance(feature, features.Sequence):
        # TFDS turns a sequence of dicts into a dict of sequences.
        columns = feature.feature
        return {
            key: _decode_text(item, features.Sequence(columns[key])) for key, item in value.items()
        }
    if isinstance(feature, features.Text) and isinstance(value, bytes):
        return value.decode()
    if isinstance(value, int):
        return np.int64(value)  # a ClassLabel
    is_flat = isinstance(value, list) and all(isinstance(item, np.number | int) for item in value)
    return np.asarray(value) if is_flat else value


def _content(value: Any) -> Iterator[bytes]:
    """The content of a decoded record as bytes, the same in every process."""
    if isinstance(value, dict):
        for key in sorted(value):
            yield key.encode()
            yield from _content(value[key])
    elif isinstance(value, list) or (isinstance(value, np.ndarray) and value.dtype.hasobject):
        for item in value:
            yield from _content(item)
    elif isinstance(value, str | bytes):
        yield value.encode() if isinstance(value, str) else value
    else:
        yield np.asarray(value).tobytes()
