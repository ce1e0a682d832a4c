"""Every measurement: what it says, the command that makes it, and whose idea it was."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measurement:
    """One row: in plain words, its command, what stands beside the number, and its source."""

    what: str
    command: str
    beside: str
    source: str


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement(
        "Which heads copy the needle out of a context", "scan",
        "intervals over needles, chance level, split-half reliability",
        "retrieval heads, Wu et al. 2024, 2404.15574",
    ),
    Measurement(
        "Which heads look at the needle from the question", "scan",
        "the same from an empty question", "QRHead, Zhang et al. 2025, 2506.09944",
    ),
    Measurement(
        "What each head writes towards the answer", "scan",
        "the same for another value", "after LOCOS 2026, 2607.01002",
    ),
    Measurement(
        "Induction, duplicate-token, previous-token heads, sinks", "scan",
        "random repeated tokens: chance 1/T",
        "Olsson et al. 2022, 2209.11895; Wang et al. 2022, 2211.00593; Xiao et al., 2309.17453",
    ),
    Measurement(
        "Whether two runs find the same heads", "compare",
        "the most that two perfect repetitions would agree", "reliability: Spearman 1904",
    ),
    Measurement(
        "Whether heads are necessary, and sufficient", "validate",
        "layer-matched random sets, Holm's correction, seven named ablations",
        "see the table of ablations; Wu et al. 2024",
    ),
    Measurement(
        "Where the answer is carried, by layer and position", "patch",
        "both directions; attribution held against exact patches",
        "activation patching, Heimersheim and Nanda 2024, 2404.15255; Syed et al. 2023, 2310.10348",
    ),
    Measurement(
        "Which heads and layers feed the retrieval heads", "circuit",
        "random senders, minimality, faithfulness against circuit size",
        "path patching, Goldowsky-Dill et al. 2023, 2304.05969; CPR and CMD: MIB 2025, 2504.13151",
    ),
    Measurement(
        "Whether heads copy by their weights, and which earlier heads feed them", "weights",
        "random matrices of the same shapes; all other earlier heads",
        "Elhage et al. 2021, transformer-circuits.pub, through TransformerLens",
    ),
    Measurement(
        "By which pointers entities are bound", "bind",
        "groups that no mechanism predicts, control designs, fit against its ceiling",
        "mixing mechanisms 2025, 2510.06182",
    ),
    Measurement(
        "Binding IDs, ordering subspaces, lookbacks, knock-outs", "bind --classics",
        "random directions and other positions",
        "Feng and Steinhardt 2023, 2310.17191; Prakash et al. 2025, 2505.14685",
    ),
    Measurement(
        "Which tokens activate which features", "graph",
        "blind null, equal occurrences, equal documents, shuffled labels and weights",
        "function tokens 2025, 2510.08203",
    ),
    Measurement(
        "Whether the features of function tokens are used", "effects",
        "random directions, features as frequent",
        "ablation of sparse features; 2510.08203's claim",
    ),
    Measurement(
        "Where features come back, and which heads carry them", "trace",
        "labels shuffled in the window; exact ablation beside attribution",
        "2510.08203; attribution graphs, Ameisen et al. 2025",
    ),
    Measurement(
        "Whether a trait can be steered by features", "steer",
        "random directions, features as frequent", "2510.08203's steering experiment",
    ),
    Measurement(
        "Which pairs of tokens make the loss, and its gradient", "losses",
        "an n-gram model; word-initial targets alone", "2510.08203's training experiment",
    ),
    Measurement(
        "How many features there are in training", "growth",
        "shuffled weights; one shared dictionary", "2510.08203's training experiment",
    ),
    Measurement(
        "Whether all this is right where the truth is known", "calibrate",
        "planted models and worlds", "ours; after Tracr, Lindner et al. 2023, 2301.05062",
    ),
)  # fmt: skip
