"""Promises of explained regions: what decides is found where it is, and a covered region is one never seen."""

import numpy as np
import pytest
import torch

from amuse.config import Config
from amuse.data import Conversations, Dialogue, Utterance, collate
from amuse.data.load import Splits
from amuse.explain import ExplainOptions, Pictures, explain, feature_groups
from amuse.explain.attribution import METHODS, neighbourhood
from amuse.explain.perturbation import Perturbation
from amuse.explain.pictures import cell_box
from amuse.model.amuse import Amuse
from amuse.training.train import train_on

EMOTIONS = ["neutral", "joy", "anger"]
SIDE, GRID = 32, 4
WIDTHS = {"text": 4, "face": 3 * GRID * GRID}


def colours(images):
    """The mean colour of each cell, about 0."""
    stacked = torch.stack([torch.from_numpy(image).permute(2, 0, 1).float() for image in images])
    return 4 * (torch.nn.functional.adaptive_avg_pool2d(stacked, GRID).flatten(1) / 255 - 0.5)


def planted_pictures(num_dialogues, seed):
    """Grey frames in which a patch of red (joy) or blue (anger) somewhere decides; and words that say nothing."""
    rng = np.random.default_rng(seed)
    images = {}

    def utterance(name):
        label = int(rng.integers(3))
        frames = rng.integers(60, 190, (2, SIDE, SIDE, 3), dtype=np.uint8)
        row, column = (int(n) * SIDE // GRID for n in rng.integers(GRID, size=2))
        patch = (250, 0, 0) if label == 1 else (0, 0, 250)
        if label:
            frames[:, row : row + SIDE // GRID, column : column + SIDE // GRID] = patch
        images[name] = list(frames)
        text = torch.from_numpy(rng.normal(size=(5, WIDTHS["text"])).astype(np.float32))
        cell = row * GRID // SIDE * GRID + column * GRID // SIDE
        evidence = {"face": [cell]} if label else {}
        return Utterance(name, "Ann", {"text": text, "face": colours(frames)}, label, evidence=evidence)

    dialogues = [Dialogue(f"d{d}", [utterance(f"d{d}_{i}") for i in range(4)]) for d in range(num_dialogues)]
    return Conversations(dialogues, EMOTIONS, WIDTHS), images


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of the patches, its test conversations and their pictures."""
    (train, _), (valid, _), (test, images) = (planted_pictures(n, seed) for seed, n in enumerate((80, 10, 12)))
    changes = ["model.d_model=16", "model.num_heads=2", "model.man_layers=1", "model.dropout=0.05", "train.epochs=12"]
    config = Config.load(None, [*changes, "train.learning_rate=0.01", "train.batch_size=8"])
    folder = tmp_path_factory.mktemp("run")
    return train_on(Splits(train, valid, test, standardizer=None), config, folder, progress=False), test, images


def perturb(model, images, dialogue, position, moments=1):
    utterance = dialogue.utterances[position]
    pictures = {"face": Pictures(images[utterance.id], colours, GRID, moments)}
    groups = feature_groups(utterance, pictures=pictures)
    return Perturbation(model, dialogue, position, groups, pictures=pictures)


def found(model, test, images, method, limit=20):
    """Share of utterances whose planted region has the highest score of all regions and words."""
    hits = []
    for dialogue in test.dialogues:
        for position, utterance in enumerate(dialogue.utterances):
            if utterance.evidence and len(hits) < limit:
                perturbation = perturb(model, images, dialogue, position)
                scores = METHODS[method](perturbation, utterance.label, 300, 0).scores
                best = perturbation.groups[int(scores.argmax())]
                hits.append((best.stream, best.cell) == ("face", utterance.evidence["face"][0]))
    assert len(hits) == limit
    return sum(hits) / limit


@pytest.mark.parametrize("method", ["lime", "shap", "occlusion"])
def test_the_region_that_decides_comes_first(trained, method):
    assert found(*trained, method) >= 0.95


def test_random_weights_lose_the_region(trained):
    """A patch moves random weights, too, but as often away from the emotion as towards it."""
    model, test, images = trained
    shares = []
    for seed in range(6):
        torch.manual_seed(seed)
        shares.append(found(Amuse(model.config, model.spec).eval(), test, images, "occlusion"))
    assert sum(shares) / len(shares) < 0.7


@pytest.mark.parametrize("moments", [1, 2])
def test_a_covered_region_is_what_the_whole_model_says_of_the_covered_pictures(trained, moments):
    model, test, images = trained
    dialogue, position = test.dialogues[1], 2
    utterance = dialogue.utterances[position]
    perturbation = perturb(model, images, dialogue, position, moments)
    kept = neighbourhood(12, len(perturbation.groups), 0)[0]
    kept[1:3, 5:] = False  # without any picture
    for row, ours in zip(kept, perturbation(kept), strict=True):
        text = torch.tensor([bool(k) for k, g in zip(row, perturbation.groups, strict=True) if g.stream == "text"])
        frames = []
        for token, image in enumerate(images[utterance.id]):
            painted, seen = image.copy(), False
            for k, group in zip(row.tolist(), perturbation.groups, strict=True):
                if group.cell is not None and token in group.tokens:
                    x, y, w, h = (round(SIDE * share) for share in cell_box(group.cell, GRID))
                    seen = seen or k
                    if not k:
                        painted[y : y + h, x : x + w] = image.mean(axis=(0, 1)).astype(np.uint8)
            frames += [painted] if seen else []
        features = {"text": utterance.features["text"][text]}
        if frames:
            features["face"] = colours(frames)
        changed = Utterance("x", "Ann", features)
        whole = Dialogue("d", [*dialogue.utterances[:position], changed, *dialogue.utterances[position + 1 :]])
        expected = model(collate([whole], WIDTHS)).logits[position].softmax(-1)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_a_picture_is_encoded_once_for_each_pattern():
    calls = []

    def encode(images):
        calls.append(len(images))
        return torch.stack([torch.from_numpy(image.mean(axis=(0, 1))).float() for image in images])

    image = np.zeros((5, 7, 3), np.uint8)
    image[:2, :3] = 200
    pictures = Pictures([image, image + 1], encode, grid=2)
    kept = torch.ones(3, 2, 4, dtype=torch.bool)
    kept[2, 0, 0] = False
    tokens = pictures(kept)
    assert sum(calls) == 3
    pictures(kept)
    assert sum(calls) == 3
    assert torch.equal(tokens[0], tokens[1])
    assert torch.equal(tokens[2, 1], tokens[0, 1])
    assert tokens[2, 0, 0] < tokens[0, 0, 0]


def test_regions_are_named_by_their_place(trained):
    _, test, images = trained
    utterance = test.dialogues[0].utterances[0]
    whole, halves = (
        [
            g
            for g in feature_groups(utterance, pictures={"face": Pictures(images[utterance.id], colours, 2, moments)})
            if g.cell is not None
        ]
        for moments in (1, 2)
    )
    assert [g.name for g in whole] == [f"face, row {r}, column {c}" for r in (1, 2) for c in (1, 2)]
    assert {g.tokens for g in whole} == {(0, 1)}
    assert [g.name for g in halves][4:6] == ["face 2, row 1, column 1", "face 2, row 1, column 2"]
    with pytest.raises(ValueError, match=r"pictures\['face'\]: expected 2, one per token, got 1"):
        feature_groups(utterance, pictures={"face": Pictures(images[utterance.id][:1], colours)})


def test_an_utterance_without_the_pictures_and_gradients_of_whole_tokens(trained):
    pytest.importorskip("captum")
    model, test, images = trained
    first = test.dialogues[0].utterances[0]
    pictures = {"face": Pictures(images[first.id], colours)}
    explanation = explain(model, test.dialogues[0], 0, ExplainOptions("gradients", samples=8), pictures=pictures)
    assert {g.cell for g in explanation.groups} == {None}
    silent = Dialogue("d", [Utterance("a", "Ann", {"text": first.features["text"]}), first])
    assert {g.stream for g in explain(model, silent, 0, ExplainOptions(samples=20)).groups} == {"text"}


def test_an_utterance_without_anything_is_explained_by_its_context(trained):
    model, test, _ = trained
    talk = Dialogue("d", [Utterance("a", "Ann", {}), *test.dialogues[0].utterances])
    explanation = explain(model, talk, 0)
    assert not explanation.groups
    assert explanation.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert (explanation.without_utterance[1:] != explanation.probabilities).any()


def test_impossible_pictures_are_refused(trained):
    model, test, images = trained
    with pytest.raises(ValueError, match="grid: expected at least 1, got 0"):
        Pictures([], colours, grid=0)
    dialogue = test.dialogues[0]
    name = dialogue.utterances[0].id
    regions = feature_groups(dialogue.utterances[0], pictures={"face": Pictures(images[name], colours)})
    with pytest.raises(
        ValueError, match="groups: expected a region or word where the stream has pictures or a sentence, whole"
    ):
        Perturbation(model, dialogue, 0, regions)
