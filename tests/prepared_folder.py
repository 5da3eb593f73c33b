"""A folder as `amuse data prepare` leaves it, from conversations in memory."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from amuse.config import SPLITS
from amuse.data.conversation import Conversations
from amuse.data.prepared import FORMAT
from amuse.data.synthetic import synthetic_conversations
from amuse.files import sha256


def seven_dialogues() -> dict[str, Conversations]:
    """Split -> seven generated dialogues, in which some utterances lack modalities."""
    return {split: synthetic_conversations(split, num_dialogues=7, seed=3, absent_rate=0.2) for split in SPLITS}


def write_prepared(folder: Path, source: dict[str, Conversations]) -> Path:
    """A prepared folder with the features of `source`: split -> conversations; two dialogues per shard."""
    (folder / "shards").mkdir(parents=True)
    index: dict[str, Any] = {"format": FORMAT, "splits": {}}
    for split, conversations in source.items():
        shards, dialogues = [], []
        for number, begin in enumerate(range(0, len(conversations), 2)):
            part = conversations.dialogues[begin : begin + 2]
            path = folder / "shards" / f"{split}-{number:06d}.safetensors"
            save_file({f"{u.id}/{m}": x for d in part for u in d.utterances for m, x in u.features.items()}, path)
            shards.append({"file": path.name, "sha256": sha256(path)})
            fields = ("id", "speaker", "label", "text", "start", "end")
            dialogues += [
                {"id": d.id, "utterances": [{name: getattr(u, name) for name in fields} for u in d.utterances]}
                for d in part
            ]
        index["splits"][split] = {"shards": shards, "dialogues": dialogues}
        index |= {"modalities": conversations.modalities, "label_names": conversations.label_names}
    (folder / "index.json").write_text(json.dumps(index))
    manifest = {"format": FORMAT, "encoders": {}, "text": False}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
