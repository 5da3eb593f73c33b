"""The experiments on real data: for each, the data, the row of its table, and the arguments of `amuse repeat`."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CONCATENATION = "--set model.man=false --set model.fusion=concat"
RIVALS = (
    *("early fusion", "late fusion", "tensor fusion", "low-rank fusion", "MulT", "contextual LSTM", "DialogueRNN"),
)
AMUSE, LINEAR, CONCAT, PAPER = "AMuSE", "linear model", "concatenation", "the paper's recipe"
FROM_EQUAL = "AMuSE, gate from the equal mix"
AVERAGED = ", three seeds averaged"


@dataclass(frozen=True)
class Experiment:
    """One row of a table.

    Attributes:
        data: A key of `SETS`.
        name: The row.
        arguments: Of `amuse repeat`, but for --data and --out.
        quick: It is part of `make results QUICK=1`.
    """

    data: str
    name: str
    arguments: str
    quick: bool = False

    @property
    def folder(self) -> str:
        """The folder of its runs; an ensemble shares its first members with the single model's runs."""
        return re.sub("[',]", "", f"{self.data}/{self.name.removesuffix(AVERAGED)}").replace(" ", "_")

    def command(self, data: Path | str, out: Path | str, seeds: int | None = None) -> list[str]:
        """The command; `seeds` in place of its own number of seeds or groupings."""
        words = ["repeat", "--data", str(data), "--out", str(out), *shlex.split(self.arguments)]
        return words if seeds is None else [*words, "--seeds", str(seeds)]


@dataclass(frozen=True)
class DataSet:
    """A data set: its title, protocol, the folders that it is read from, and what makes the one that is trained on."""

    title: str
    protocol: str
    sources: tuple[str, ...]
    prepare: Callable[[Path, Path], Path]  # folder of all data sets, folder for tables -> folder to train on


def example(name: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", f"amuse.examples.{name}", *arguments], check=True)


def _enjoyment(root: Path, tables: Path) -> Path:
    if not (tables / "enjoyment").exists():
        example("enjoyment", str(root / "enjoyment_hri"), "--out", str(tables / "enjoyment"))
    return tables / "enjoyment"


def _acted(root: Path, tables: Path, per_actor: bool = False) -> Path:
    out = tables / ("acted_per_actor" if per_actor else "acted")
    if not out.exists():
        source = root / "ravdess_features" / "combined_summary.csv"
        example("acted", str(source), "--out", str(out), *(["--per-actor"] if per_actor else []))
    return out


def _meld_dev(root: Path, tables: Path) -> Path:
    vectors = tables / "wav2vec2_dev.safetensors"
    if not vectors.exists():
        tables.mkdir(parents=True, exist_ok=True)
        source = root / "meld_audio_dev_test" / "audio_wav2vec2_val.npy"
        lines = ["--csv", str(root / "meld" / "dev_sent_emo.csv"), "--without", "110:7"]
        example("meld_vectors", str(source), *lines, "--out", str(vectors))
    return root / "meld"


FOLDS = "predictions of all folds of a grouping are pooled into one score; mean and sample deviation over groupings"
SETS = {
    "enjoyment": DataSet(
        "Enjoyment of talking to a robot",
        f"590 exchanges of 25 dialogues, mean of three coders' ratings; 5 folds over dialogues, 5 groupings; {FOLDS}",
        ("enjoyment_hri",),
        _enjoyment,
    ),
    "acted": DataSet(
        "Acted emotions",
        f"360 RAVDESS clips of 24 actors, 8 emotions, voice and face; 6 folds over actors, 5 groupings; {FOLDS}",
        ("ravdess_features",),
        _acted,
    ),
    "acted per actor": DataSet(
        "Acted emotions, features standardised per actor",
        "as above; every actor's features have mean 0 and deviation 1 over the actor's 15 clips, whose labels that "
        "does not need",
        ("ravdess_features",),
        lambda root, tables: _acted(root, tables, per_actor=True),
    ),
    "acted, tuned alike": DataSet(
        "Acted emotions, every network tuned alike",
        "as for acted emotions, one grouping; in each fold the best of four settings, the same ones for everyone, by "
        "the score of four actors who are neither trained on nor tested",
        ("ravdess_features",),
        _acted,
    ),
    "MELD dev": DataSet(
        "MELD's validation split, text and wav2vec 2.0",
        f"1,109 utterances of 114 dialogues, 7 emotions; 5 folds over dialogues, 5 groupings; {FOLDS}",
        ("meld", "meld_audio_dev_test"),
        _meld_dev,
    ),
}


def _rows(data: str, config: str, streams: tuple[str, ...], protocol: str, more: str = "") -> list[Experiment]:
    """AMuSE, what it adds to, and what it has to beat; the slow ones with fewer groupings.

    Args:
        data: A key of `SETS`.
        config: Of AMuSE.
        streams: Its modalities.
        protocol: What paper.yaml lacks of the data set's protocol, which `config` has.
        more: What every configuration needs.
    """
    common = f"--config {config} {more}".strip()
    return [
        Experiment(data, AMUSE, common, quick=True),
        Experiment(data, FROM_EQUAL, f"{common} --set model.gate_scale=0 --seeds 2"),
        Experiment(data, CONCAT, f"{common} {CONCATENATION}"),
        Experiment(data, LINEAR, f"{common} --rival linear", quick=data != "MELD dev"),
        *(
            Experiment(data, f"{LINEAR} on {s}", f"{common} --rival linear --set 'data.modalities=[{s}]'")
            for s in streams
        ),
        Experiment(data, AMUSE + AVERAGED, f"{common} --ensemble 3"),
        Experiment(data, CONCAT + AVERAGED, f"{common} {CONCATENATION} --ensemble 3"),
        *(Experiment(data, f"{s} alone", f"{common} {CONCATENATION} --set 'data.modalities=[{s}]'") for s in streams),
        *(Experiment(data, rival, f"{common} --rival '{rival}' --seeds 2") for rival in RIVALS),
        Experiment(data, PAPER, f"--config paper {protocol} {more} --seeds 1"),
    ]


ENJOYMENT = ("audio", "actions", "expressions", "pose", "timing")
# What the ratings of enjoyment needed: AMuSE with one choice of enjoyment.yaml undone.
UNDONE = {
    "AMuSE with layer norms on descriptors": "--set model.descriptor_norm=true",
    "AMuSE with context by attention": "--set model.temporal=attention",
    "AMuSE with the face as tokens": "--set 'data.modalities=[audio, video, timing]'",
}
TUNED = "--folds 6 --groups actor --trials 4 --set data.valid_fraction=0.2 --seeds 1"
EXPERIMENTS = [
    *_rows(
        *("enjoyment", "enjoyment", ENJOYMENT),
        f"--folds 5 --set 'data.modalities=[{', '.join(ENJOYMENT)}]' --set model.fusion=learned",
    ),
    *(Experiment("enjoyment", name, f"--config enjoyment {undone} --seeds 2") for name, undone in UNDONE.items()),
    *_rows("acted", "acted", ("audio", "video"), "--folds 6 --groups actor"),
    *_rows("acted per actor", "acted", ("audio", "video"), "--folds 6 --groups actor"),
    *(
        Experiment("acted, tuned alike", name, f"--config acted {TUNED} {which}".strip())
        for name, which in [
            (AMUSE, ""),
            (CONCAT, CONCATENATION),
            *((rival, f"--rival '{rival}'") for rival in RIVALS),
        ]
    ),
    *_rows(
        *("MELD dev", "meld_dev", ("text", "audio")),
        "--folds 5 --set data.fold_splits=[valid] --set data.layers=[3,4,5,6] --set data.merge=concat",
        "--set data.features.audio={tables}/wav2vec2_dev.safetensors",
    ),
]
