"""Run folders: `result.json`, tensors and tables, written whole or not at all; no pickle."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.errors import ResultError

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

RESULT = "result.json"
PACKAGES = (
    "mnemoscope", "torch", "transformers", "tokenizers", "numpy", "transformer-lens", "nnsight",
)  # fmt: skip


@dataclass(frozen=True)
class Provenance:
    """What made a result: enough to make it again, and to know when it cannot be compared.

    `reference` is what loads the model again; empty where nothing does, or in older results, which
    lack `n_kv_heads` too.
    """

    model: str
    source: str
    revision: str | None
    quantisation: str | None
    weight_hash: str | None
    tokenizer_hash: str
    architecture: str
    n_layers: int
    n_heads: int
    dtype: str
    device: str
    attention: str
    versions: dict[str, str]
    created: str
    seconds: float
    peak_memory_mb: float | None
    reference: str = ""
    n_kv_heads: int | None = None


def provenance(model: "HFModel", *, seconds: float) -> Provenance:
    """Describe a loaded model and this process."""
    source = model.source
    return Provenance(
        model=source.name,
        source=source.detail,
        revision=source.revision,
        quantisation=source.quantisation,
        weight_hash=source.weight_hash,
        tokenizer_hash=source.tokenizer_hash,
        architecture=model.spec.architecture,
        n_layers=model.spec.n_layers,
        n_heads=model.spec.n_heads,
        dtype=str(model.dtype).removeprefix("torch."),
        device=model.device.type,
        attention="sdpa, rows in float32"
        if model.name == "hf"
        else f"{model.name}, whole forwards",
        versions={name: _version(name) for name in PACKAGES},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 1),
        peak_memory_mb=peak_memory_mb(),
        reference=source.reference,
        n_kv_heads=model.spec.n_kv_heads,
    )


def peak_memory_mb() -> float | None:
    """Highest resident memory of this process so far, where the system tells."""
    try:
        import resource
    except ImportError:
        return None
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def write_folder(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Fill a temporary folder beside the target, then put it in the target's place.

    Raises:
        ResultError: the place cannot be written to; what was there stays as it was.
    """
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise cannot_write(folder, error) from None
    try:
        fill(fresh)
        fresh.chmod(0o755)
        old = folder.with_name(f".{folder.name}-old-{os.getpid()}")
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise cannot_write(folder, error) from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def cannot_write(where: Path, error: OSError) -> ResultError:
    """One line for a full disk, a missing right, a file in the way."""
    reason = error.strerror or str(error)
    return ResultError(f"cannot write {where}: {reason}; name another --output or make room")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON that a person can read; dataclasses as objects; NaN is refused."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False, default=_plain)
    path.write_text(text + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return asdict(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} does not go into a result file")


@contextmanager
def unharmed(folder: Path | str, again: str = "run it again") -> Iterator[None]:
    """What fails in here while a result is read is told as damage of its folder.

    Raises:
        ResultError: in the place of whatever a missing, cut or foreign file raises.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
        raise ResultError(f"{folder} is damaged ({error}); {again}") from None


def read_result(folder: Path, *, kind: str, version: int) -> dict[str, Any]:
    """The `result.json` of a run folder, checked for kind and schema.

    Raises:
        ResultError: no result, an unreadable one, another kind, another schema version.
    """
    path = Path(folder) / RESULT
    if not path.exists():
        unfinished = (Path(folder) / "parts").is_dir()
        why = "its run has not finished; run it again with --resume" if unfinished else "no result"
        raise ResultError(f"{folder}: {why} (no {RESULT} in it)")
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(f"{path} cannot be read ({error}); the run must be made again") from None
    if not isinstance(value, dict) or value.get("kind") != kind:
        found = value.get("kind") if isinstance(value, dict) else None
        raise ResultError(f"{folder} holds a {found or 'foreign'} result, expected a {kind} result")
    if value.get("schema") != version:
        raise ResultError(
            f"{folder} was written with schema {value.get('schema')}, this version reads "
            f"{version}; run it again, or use the version of mnemoscope named in it"
        )
    return value
