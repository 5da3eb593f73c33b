"""Latency of one utterance in a running conversation, from features to prediction.

    python -m benchmarks.streaming --utterances 300 --threads 1
    python -m benchmarks.streaming --run runs/mine       the best model of a run with `causal: true`

Prints the median and the 99th percentile of `StreamingSession.push`, and those of the whole conversation so
far in one batch, which gives the same prediction without the cache.
"""

import argparse
import statistics
import time

import torch

from amuse.config import ModelConfig
from amuse.data import Dialogue, Utterance, collate
from amuse.data.spec import DataSpec
from amuse.inference.streaming import StreamingSession
from amuse.model.amuse import Amuse

WIDTHS = {"text": 384, "audio": 128, "video": 512}
TOKENS = {"text": 20, "audio": 50, "video": 16}


def talk(modalities: dict[str, int], count: int) -> list[Utterance]:
    return [
        Utterance(
            id=str(i),
            speaker="ABC"[i % 3],
            features={name: torch.randn(TOKENS.get(name, 20), width) for name, width in modalities.items()},
        )
        for i in range(count)
    ]


def percentiles(seconds: list[float]) -> str:
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return f"p50 {1e3 * cuts[49]:.2f} ms, p99 {1e3 * cuts[98]:.2f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", help="folder of a run; default: an untrained model of the paper's layout, d_model 128")
    parser.add_argument("--utterances", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.run:
        session = StreamingSession.from_run(arguments.run)
    else:
        names = ["neutral", "joy", "sadness", "anger", "surprise", "fear", "disgust"]
        model = Amuse(ModelConfig(temporal="attention", causal=True, temporal_layers=2), DataSpec(WIDTHS, names))
        session = StreamingSession(model)
    modalities = session.model.spec.modalities
    utterances = talk(modalities, arguments.utterances)
    for utterance in utterances[:20]:
        session.push(utterance)
    session.reset()

    pushed, batched = [], []
    for i, utterance in enumerate(utterances):
        started = time.perf_counter()
        prediction = session.push(utterance)
        pushed.append(time.perf_counter() - started)
        if i % 25 == 24:
            dialogue = Dialogue("talk", utterances[: i + 1])
            started = time.perf_counter()
            with torch.inference_mode():
                logits = session.model(collate([dialogue], modalities).to(session.device)).logits[-1]
            batched.append(time.perf_counter() - started)
            torch.testing.assert_close(prediction.logits, logits.float().cpu(), atol=1e-4, rtol=1e-4)
    parameters = sum(p.numel() for p in session.model.parameters())
    print(f"{parameters:,} parameters, {len(utterances)} utterances, {arguments.threads} threads, {session.device}")
    print(f"push           {percentiles(pushed)}")
    print(f"whole again    {percentiles(batched)} (every 25th utterance)")


if __name__ == "__main__":
    main()
