"""What a run wanted to know, for a reader of its result: a sentence or two for each kind."""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def scan(result: Any) -> str:
    """Of a scan of heads."""
    lengths = result.settings["lengths"]
    return (
        f"Which heads of {result.provenance.model} look a fact up in the context and copy it? "
        f"{result.trials['needle'].nunique()} facts were hidden in contexts of {_span(lengths)} "
        "tokens and asked for."
    )


def patch(result: Any) -> str:
    """Of a patching run."""
    return (
        f"Where in {result.provenance.model}, by layer and position, is the answer carried? "
        f"Activations ({', '.join(result.settings['sites'])}) were exchanged between a prompt and "
        "its twin, which states another value, both ways."
    )


def circuit(result: Any) -> str:
    """Of a circuit."""
    return (
        f"Which earlier heads and layers of {result.provenance.model} feed "
        f"{', '.join(result.settings['heads'])}, and through which input? Each sender was taken "
        "away as that input alone sees it, beside senders drawn at random."
    )


def binding(result: Any) -> str:
    """Of a binding run."""
    tasks = dict.fromkeys(s.task for s in result.studies.values())
    n = len(result.studies)
    return (
        f"How does {result.provenance.model} retrieve bound entities: by their place in the list, "
        f"by the words beside them, or by a pointer to themselves? {n} "
        f"{'study' if n == 1 else 'studies'} of {', '.join(tasks)}, by exchanged activations."
    )


def graph(result: Any) -> str:
    """Of a token-feature graph."""
    return (
        f"Do the most frequent tokens of a text, {result.settings['cut']:.0%} of all occurrences, "
        f"activate more features of {result.provenance.model} than their frequency gives?"
    )


def effects(result: Any) -> str:
    """Of features taken away."""
    return (
        f"Is what the features of {result.provenance.model} carry at a function token used later? "
        f"Features of {result.station} were taken away at function and at content tokens that "
        f"stand equally far from {result.rows['trial'].nunique()} predictions."
    )


def weights(result: Any) -> str:
    """Of the weights of heads."""
    return (
        f"Do {', '.join(result.settings['heads'])} of {result.provenance.model} copy by their "
        "weights, and do their queries, keys and values read what earlier heads write?"
    )


def free_edits(result: Any) -> str:
    """Of an intervention of one's own."""
    return (
        f"What does an intervention on {', '.join(result.settings['heads'])} of "
        f"{result.provenance.model} do to the answers to {len(result.trials)} questions, beside "
        "the same on matched random heads?"
    )


def reactivation(result: Any) -> str:
    """Of the re-activation of features over a text."""
    return (
        f"Do features of content tokens come back at function tokens in {result.provenance.model} "
        "more than chance has it, are they used there, and which heads bring them?"
    )


def losses(result: Any) -> str:
    """Of losses by group."""
    return (
        "Which group of (current, next) token, function or content, holds the loss of "
        f"{', '.join(result.models)}?"
    )


def growth(result: Any) -> str:
    """Of the growth of features."""
    return (
        f"How many features does a text activate in {', '.join(result.models)}, counted with one "
        "shared dictionary and with one for each?"
    )


def calibration(what: str, names: str) -> Callable[[Any], str]:
    """Of a calibration of `what`; `names` is what its settings call the planted truths."""

    def asked(result: Any) -> str:
        n, seeds = len(result.settings[names]), result.settings["seeds"]
        return (
            f"How often are {what} right? On {n} planted {names} whose truth is known, {seeds} "
            f"{'seed' if seeds == 1 else 'seeds'} each."
        )

    return asked


def validation(result: Any) -> str:
    """Of a validation; its page asks it too."""
    return str(import_module("apps.validation_page").asked(result))


def _span(values: Any) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
