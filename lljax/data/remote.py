"""Text from elsewhere: files at a URL, and the TensorFlow Datasets catalogue without TensorFlow.

Both are fetched once, under a lock, and put into place whole or not at all. Without a network they
fail within seconds: both `urlopen` on a silent network and TensorFlow Datasets (204 s of repeated
attempts) would take far longer.
"""

import contextlib
import difflib
import glob
import hashlib
import http.client
import importlib.util
import io
import os
import re
import shutil
import sys
import threading
import types
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
from tqdm import tqdm

from lljax.errors import UserError

_USER_AGENT = {"User-Agent": "lljax"}  # some servers refuse urllib's own
_REACH_SECONDS = 5.0


class TextError(UserError):
    """The text or a setting about it cannot be used; says which, why, and what to do."""


@contextlib.contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Makes a folder of the cache; one process at a time goes on, the others wait.

    Raises:
      TextError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock")
        lock.acquire()
    except OSError as error:
        raise TextError(
            f"data.cache_dir: {folder} cannot be written ({error.strerror or error}). Give another "
            f"folder as data.cache_dir."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _why_unreachable(url: str) -> str | None:
    """None if anything answers at the URL's host, be it a refusal.

    In a thread of its own, because no timeout of `urlopen` covers the look-up of the host's name.
    Proxies are those of the environment, as everywhere in urllib.
    """
    answer = [f"no answer within {_REACH_SECONDS:.0f} seconds"]

    def ask() -> None:
        request = urllib.request.Request(url, headers=_USER_AGENT, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=_REACH_SECONDS).close()
            answer[0] = ""
        except urllib.error.HTTPError as error:
            error.close()
            answer[0] = ""
        except urllib.error.URLError as error:
            answer[0] = str(error.reason)
        except (OSError, ValueError, http.client.HTTPException) as error:
            answer[0] = str(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_REACH_SECONDS + 2)
    return answer[0] or None


def download(url: str, folder: Path, limit: int | None = None) -> Path:
    """The file at a URL, in `folder`; fetched the first time only.

    Args:
      url: http:// or https://.
      folder: made if need be.
      limit: stop after this many bytes.

    Raises:
      TextError: no network, no such file, or `folder` cannot be written.
    """
    name = Path(urllib.parse.urlsplit(url).path).name or "text"
    digest = hashlib.sha256(f"{url} {limit}".encode()).hexdigest()[:16]
    target = folder / f"{digest}-{name[-80:]}"
    if target.exists():
        return target
    with writable(folder):
        if target.exists():  # another process fetched it meanwhile
            return target
        if reason := _why_unreachable(url):
            raise TextError(
                f"data.path: {url} cannot be reached ({reason}). Check the network (and the proxy "
                f"in HTTPS_PROXY), or fetch the file elsewhere and give its path as data.path."
            )
        part = target.with_name(target.name + ".part")
        try:
            _fetch(url, part, limit)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
    return target


def _fetch(url: str, part: Path, limit: int | None) -> None:
    try:
        request = urllib.request.Request(url, headers=_USER_AGENT)
        with urllib.request.urlopen(request, timeout=30) as response, part.open("wb") as file:
            if response.headers.get_content_type() == "text/html":
                raise TextError(
                    f"data.path: {url} is a web page. Give the address of the text file itself "
                    f"(for example what a page's download button leads to)."
                )
            length = response.headers.get("Content-Length")
            wanted = min((n for n in (length and int(length), limit) if n), default=None)
            done = 0
            label = f"downloading {part.name[17:-5]}"
            with tqdm(total=wanted, unit="B", unit_scale=True, desc=label, disable=None) as bar:
                while limit is None or done < limit:
                    size = 1 << 18 if limit is None else min(1 << 18, limit - done)
                    if not (block := response.read(size)):
                        break
                    file.write(block)
                    done += len(block)
                    bar.update(len(block))
            if wanted is not None and done < wanted:
                raise TextError(
                    f"data.path: the connection to {url} ended after {done} of {wanted} bytes. Try "
                    f"again; nothing was kept."
                )
    except urllib.error.HTTPError as error:
        error.close()
        raise TextError(
            f"data.path: {url} answers {error.code} {error.reason}. Check the address."
        ) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, TextError):
            raise
        raise TextError(
            f"data.path: {url} could not be fetched into {part.parent} ({error}). Nothing was kept."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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
    with _quiet():
        return make()


def prepare(make: Callable[[], Any], before: Callable[[], None] = lambda: None) -> Any:
    """Prepares a data set unless it is there; returns a builder that can read it.

    TensorFlow Datasets writes into a folder beside the final one and renames it at the end, so a
    killed process leaves nothing that would be read; its leftovers are removed here.

    Args:
      make: makes the builder.
      before: called before the preparation, under the lock.

    Raises:
      TextError: the cache cannot be written.
    """
    builder = make_builder(make)
    folder = Path(builder.data_path).parent
    with writable(folder):
        if not builder.data_path.exists():
            for leftover in folder.glob("incomplete.*"):
                shutil.rmtree(leftover, ignore_errors=True)
            before()
            with _quiet():
                builder.download_and_prepare(file_format="array_record")
    return make_builder(make)  # only a new one knows what is on disk


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
    own, needs no network.

    Raises:
      TextError: no such data set, it has no text, it is out of reach or needs TensorFlow.
    """
    import tensorflow_datasets as tfds

    def make(data_dir: Path | None = folder) -> Any:
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")

    try:
        builder = make_builder(make)
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(re.split("[/:]", name)[0], known, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise TextError(
            f"data.tfds: the catalogue of TensorFlow Datasets has no {name}.{hint}"
        ) from error
    except Exception as error:
        raise TextError(f"data.tfds: {name} cannot be used: {_first_line(error)}") from error
    feature = _text_feature(name, builder.info.features, tfds.features.Text)
    if not builder.data_path.exists():
        builder = _prepared_elsewhere(make) or _prepare_catalogue(name, builder, make)
    splits = sorted(builder.info.splits)
    # Only the text is decoded: other features may need TensorFlow for it.
    only = tfds.features.FeaturesDict({feature: tfds.features.Text()})
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    for split in ["train"] if "train" in splits else splits:
        for example in read_batched(builder.as_data_source(split, deserialize_method=raw)):
            yield only.deserialize_example_np(example)[feature].decode(errors="replace")


def read_batched(examples: Any) -> Iterator[Any]:
    """The examples of a data source in order; many at once are read several times as fast."""
    for start in range(0, len(examples), 1024):
        yield from examples.__getitems__(list(range(start, min(start + 1024, len(examples)))))


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"


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

    def check_reach() -> None:
        if not module.__name__.startswith("tensorflow_datasets."):
            return  # a user's own builder may need no network
        # Builders without a list of their URLs fetch from Google's storage.
        url = next(iter(builder.url_infos), "https://storage.googleapis.com/")
        if reason := _why_unreachable(url):
            host = urllib.parse.urlsplit(url).hostname
            raise TextError(
                f"data.tfds: {name} has to be downloaded, and {host} cannot be reached ({reason}). "
                f"Check the network (and the proxy in HTTPS_PROXY), or give a text of your own as "
                f"data.path."
            )

    try:
        with _files_without_tensorflow(module):
            return prepare(make, check_reach)
    except TextError:
        raise
    except Exception as error:
        raise TextError(
            f"data.tfds: {name} could not be prepared ({_first_line(error)}). Some data sets of "
            f"the catalogue need TensorFlow or Beam, which lljax does not use. Choose another, or "
            f"write its text to a file and give that as data.path."
        ) from error
