"""What an answer is measured by: names, words and units, for those who measure and who only read.

Numbers of a case stand in the order of `FORCED`, then of `GENERATED`.
"""

METRICS: dict[str, tuple[str, str]] = {
    "logprob": ("log-probability of the answer", "nats"),
    "logit_diff": ("logit of the answer minus that of the counterfactual value", "logits"),
    "exact": ("greedy decoding gives just the answer", "share"),
    "contains": ("the generated text holds the answer", "share"),
    "rouge": ("ROUGE-1 recall of the answer in the generated text", "share"),
}
"""Name: what it is, and its unit."""

FORCED = ("logprob", "logit_diff", "exact")
"""Read off one forward pass over the known answer."""
GENERATED = ("contains", "rouge")
"""Need generated text."""
