"""The TensorFlow Datasets catalogue without TensorFlow, and its builders without their messages.

Without a network it fails within seconds; TensorFlow Datasets alone tries for 204 s.
"""

import contextlib
import difflib
import glob
import importlib.util
import io
import os
import re
import sys
import types
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lljax.data import cache, remote
from lljax.data.errors import TextError
from lljax.data.progress import log


class Damaged(Exception):
    """A prepared data set cannot be read, or is not what was written."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps TensorFlow Datasets from printing on stdout, logging, and drawing bars into a file."""
    import tensorflow_datasets as tfds
    from absl import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)


def make_builder(make: Callable[[], Any]) -> Any:
    """A TensorFlow Datasets builder, made without messages."""
    with quiet():
        return make()


def prepare(builder: Any) -> None:
    """Prepares a data set under its folder's lock, and seals it.

    TensorFlow Datasets writes into a folder beside the final one and renames it at the end, so a
    killed process leaves nothing that would be read; its leftovers are removed here.
    """
    folder = Path(builder.data_path)
    cache.clean(folder.parent)
    with quiet():
        builder.download_and_prepare(file_format="array_record")
    cache.seal(folder)


@contextlib.contextmanager
def _files_without_tensorflow(module: types.ModuleType) -> Iterator[None]:
    """Lends a catalogue module the few file functions of TensorFlow that it uses.

    Builders of texts such as tiny_shakespeare, lm1b and pg19 need TensorFlow only to open files.
    """
    if importlib.util.find_spec("tensorflow") is not None or not hasattr(module, "tf"):
        yield
        return
    gfile = types.SimpleNamespace(
        GFile=lambda path, mode="r": open(  # noqa: SIM115
            path, mode, encoding=None if "b" in mode else "utf-8"
        ),
        exists=os.path.exists,
        isdir=os.path.isdir,
        listdir=os.listdir,
        glob=lambda pattern: sorted(glob.glob(os.fspath(pattern))),
        walk=os.walk,
    )
    compat = types.SimpleNamespace(as_text=lambda s: s.decode() if isinstance(s, bytes) else s)
    original = module.tf
    module.tf = types.SimpleNamespace(io=types.SimpleNamespace(gfile=gfile), compat=compat)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.tf = original  # type: ignore[attr-defined]


def read_catalogue(name: str, folder: Path) -> Iterator[str]:
    """Texts of a data set of the TensorFlow Datasets catalogue, one by one.

    They are those of the split `train`, or of all splits if there is none of that name. A data set
    that was prepared before (as array_record) in `folder`, or where TensorFlow Datasets keeps its
    own, needs no network. One in `folder` that is damaged is prepared again.

    Raises:
      TextError: no such data set, it has no text, it is out of reach or needs TensorFlow.
      Damaged: while it is read; then it is gone from `folder`, so that one may try again.
    """
    import tensorflow_datasets as tfds

    def make(data_dir: Path | None = folder) -> Any:
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")

    builder = _find_builder(name, folder, make)
    feature = _text_feature(name, builder.info.features, tfds.features.Text)
    ours = Path(builder.data_path)
    if ours.exists():
        _check(ours)
    elif elsewhere := _prepared_elsewhere(make):
        builder = elsewhere
    else:
        builder = _prepare_catalogue(name, builder, make)
    try:
        yield from _texts(builder, feature)
    except (TextError, MemoryError):
        raise
    except Exception as error:  # whatever array_record makes of a damaged file
        where = Path(builder.data_path)
        if where != ours:
            raise TextError(
                f"data.tfds: {where} cannot be read ({_first_line(error)}). Remove that folder; "
                f"the data set is then prepared again."
            ) from error
        _discard(where, _first_line(error))
        raise Damaged from error


def _texts(builder: Any, feature: str) -> Iterator[str]:
    import tensorflow_datasets as tfds

    splits = sorted(builder.info.splits)
    # Only the text is decoded: other features may need TensorFlow for it.
    only = tfds.features.FeaturesDict({feature: tfds.features.Text()})
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    for split in ["train"] if "train" in splits else splits:
        for example in read_batched(builder.as_data_source(split, deserialize_method=raw)):
            yield only.deserialize_example_np(example)[feature].decode(errors="replace")


def _find_builder(name: str, folder: Path, make: Callable[[], Any]) -> Any:
    import tensorflow_datasets as tfds

    try:
        return make_builder(make)
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(re.split("[/:]", name)[0], known, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise TextError(
            f"data.tfds: the catalogue of TensorFlow Datasets has no {remote.shown(name)}.{hint}"
        ) from error
    except Exception as error:
        # What is prepared may be damaged; without it the builder can be made.
        for info in sorted((folder / re.split("[/:]", name)[0]).glob("**/dataset_info.json")):
            if cache.is_sealed(info.parent) and cache.damage(info.parent):
                _discard(info.parent, info.name)
                return _find_builder(name, folder, make)
        raise TextError(
            f"data.tfds: {remote.shown(name)} cannot be used: {_first_line(error)}"
        ) from error


def _check(folder: Path) -> None:
    """Removes a prepared data set that is damaged; Damaged says that it did."""
    if folder.is_dir() and not cache.is_sealed(folder):
        # Prepared before there were seals, or the process was killed just before sealing it. It
        # can be read where it cannot be written.
        with contextlib.suppress(TextError), cache.writable(folder.parent):
            cache.seal(folder)
    elif damaged := cache.damage(folder):
        _discard(folder, damaged)
        raise Damaged


def _discard(folder: Path, why: str) -> None:
    log(f"warning: the data set in {folder} is damaged ({why}) and is prepared again.")
    with cache.writable(folder.parent):
        cache.remove(folder)


def read_batched(examples: Any) -> Iterator[Any]:
    """The examples of a data source in order; many at once are read several times as fast."""
    for start in range(0, len(examples), 1024):
        yield from examples.__getitems__(list(range(start, min(start + 1024, len(examples)))))


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {remote.shown(error)}"


def _text_feature(name: str, features: Any, text_type: type) -> str:
    items = dict(features.items()) if hasattr(features, "items") else {}
    texts = [key for key, feature in items.items() if isinstance(feature, text_type)]
    if "text" in texts:
        return "text"
    if len(texts) != 1:
        raise TextError(
            f"data.tfds: {name} has no feature `text` and not just one that is text, but "
            f"{', '.join(texts) or 'none'} of {', '.join(items) or 'no named features'}. Choose "
            f"another data set, or write the text to a file and give it as data.path."
        )
    return texts[0]


def _prepared_elsewhere(make: Callable[[Path | None], Any]) -> Any:
    try:
        builder = make_builder(lambda: make(None))
        path = Path(builder.data_path)
    except Exception:  # whatever is there, it is no array_record of this data set
        return None
    return builder if path.is_dir() and any(path.glob("*array_record*")) else None


def _prepare_catalogue(name: str, builder: Any, make: Callable[[], Any]) -> Any:
    module = sys.modules[type(builder).__module__]
    folder = Path(builder.data_path)
    try:
        with cache.writable(folder.parent), _files_without_tensorflow(module):
            if not folder.exists():  # else another process prepared it meanwhile
                if module.__name__.startswith("tensorflow_datasets."):
                    _check_reach(name, builder)  # a user's own builder may need no network
                prepare(builder)
        return make_builder(make)  # only a new one knows what is on disk
    except TextError:
        raise
    except Exception as error:
        raise TextError(
            f"data.tfds: {name} could not be prepared ({_first_line(error)}). Some data sets of "
            f"the catalogue need TensorFlow or Beam, which lljax does not use. Choose another, or "
            f"write its text to a file and give that as data.path."
        ) from error


def _check_reach(name: str, builder: Any) -> None:
    # Builders without a list of their URLs fetch from Google's storage.
    url = next(iter(builder.url_infos), "https://storage.googleapis.com/")
    if reason := remote.why_unreachable(url):
        host = urllib.parse.urlsplit(url).hostname
        raise TextError(
            f"data.tfds: {name} has to be downloaded, and {host} cannot be reached ({reason}). "
            f"Check the network (and the proxy in HTTPS_PROXY), or give a text of your own as "
            f"data.path."
        )
