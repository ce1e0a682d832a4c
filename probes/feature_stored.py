"""Dictionaries of a run folder: looked at when the run is opened, read when they are used.

Whoever looks at a result needs no weights, and weights need torch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from probes.feature_drafts import check_safetensors, read_settings
from probes.feature_saelens import SETTINGS, WEIGHTS

if TYPE_CHECKING:
    from probes.features import Dictionary


@dataclass(frozen=True)
class StoredDictionary:
    """A folder that `probes.feature_files.write_dictionary` wrote.

    Raises:
        ResultError: no dictionary is there, or one of its files is damaged.
    """

    folder: Path

    def __post_init__(self) -> None:
        read_settings(self.folder / SETTINGS)
        check_safetensors(self.folder / WEIGHTS)


def dictionary_of(held: "Dictionary | StoredDictionary") -> "Dictionary":
    """The dictionary itself, read now where it is stored.

    Raises:
        ResultError: it cannot be read any more; see `probes.feature_files.read_dictionary`.
    """
    if not isinstance(held, StoredDictionary):
        return held
    from probes.feature_files import read_dictionary

    return read_dictionary(held.folder)
