"""Encoding by transformers in batches and one utterance at a time: `python -m benchmarks.encoding`.

Random weights of the size of wav2vec 2.0 base, Whisper base's encoder and ViT base; sounds as long as MELD's
utterances, four pictures each. Prints utterances per second of the encoders alone, without decoding, and the largest
difference between the features. On a CPU these are seconds of the one thread that encodes, not of the clock, so that
other programs on the machine hardly count.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from amuse.encoders.pretrained import PretrainedAudio, PretrainedVision
from amuse.encoders.signal import SAMPLE_RATE
from benchmarks import meld

RATE = 5.0  # audio tokens per second
HEAD = ["encoder", "one at a time", "in batches", "ratio", "largest difference, relative"]


def write_models(root: Path, small: bool) -> None:
    """Folders with random weights; `small` for a quick look at whether everything runs."""
    import transformers as t

    size = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    own: dict[str, Any] = size if small else {}
    torch.manual_seed(0)
    t.Wav2Vec2Model(t.Wav2Vec2Config(**own)).save_pretrained(root / "wav2vec2")
    t.Wav2Vec2FeatureExtractor().save_pretrained(root / "wav2vec2")
    t.ViTModel(t.ViTConfig(**own)).save_pretrained(root / "vit")
    t.ViTImageProcessor().save_pretrained(root / "vit")
    width, layers = (48, 1) if small else (512, 6)
    whisper = t.WhisperConfig(
        d_model=width, encoder_layers=layers, decoder_layers=1, encoder_attention_heads=8, decoder_attention_heads=8
    )
    t.WhisperModel(whisper).save_pretrained(root / "whisper")
    t.WhisperFeatureExtractor().save_pretrained(root / "whisper")


def sounds(count: int) -> list[np.ndarray]:
    """Noise as long as MELD's utterances, float32 at 16 kHz."""
    lengths = [u["audio"] / RATE for dialogue in meld.dialogues() for u in dialogue][:count]
    rng = np.random.default_rng(0)
    return [rng.standard_normal(int(seconds * SAMPLE_RATE)).astype(np.float32) for seconds in lengths]


def pictures(count: int) -> list[list[np.ndarray]]:
    """Four uint8 `(H, W, 3)` pictures per utterance."""
    rng = np.random.default_rng(0)
    return [[rng.integers(0, 255, (180, 320, 3), dtype=np.uint8) for _ in range(4)] for _ in range(count)]


def compare(name: str, encoder: Any, signals: list[Any], device: str) -> str:
    """A row of the table."""
    inputs = [encoder.prepare(signal) for signal in signals]
    encoder.encode(inputs[:2])  # the first call tries whether batches may be padded
    times, features = [], []
    ways: list[Callable[[], Any]] = [
        lambda: [encoder.encode([each])[0] for each in inputs],
        lambda: encoder.encode(inputs),
    ]
    for way in ways:
        clock = time.perf_counter if device == "cuda" else time.process_time
        began = clock()
        features.append(way())
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - began)
    alone, together = features
    scale = max(float(x.abs().max()) for x in alone)
    error = max(float((a - b).abs().max()) for a, b in zip(alone, together, strict=True)) / scale
    rates = [len(signals) / seconds for seconds in times]
    return f"| {name} | {rates[0]:.2f} | {rates[1]:.2f} | {rates[1] / rates[0]:.2f} | {error:.1e} |"


def _encoder(name: str, path: str, device: str) -> Any:
    return PretrainedVision(path, device) if name == "vit" else PretrainedAudio(path, RATE, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=64, help="of a shard")
    parser.add_argument("--encoders", nargs="+", default=["wav2vec2", "whisper", "vit"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--small", action="store_true", help="tiny models")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in each of amuse's processes
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder), options.small)
        for name in options.encoders:
            path = str(Path(folder) / name)
            encoder: Any = _encoder(name, path, options.device)
            signals: list[Any] = (pictures if name == "vit" else sounds)(options.utterances)
            print(compare(name, encoder, signals, options.device), flush=True)


if __name__ == "__main__":
    main()
