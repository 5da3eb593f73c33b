"""Explanations of a dialogue of a run's own data, as the content of a report."""

from functools import cache
from pathlib import Path
from typing import Any

from amuse.config import DataConfig
from amuse.data.conversation import TOKEN_IDS, Conversations, Dialogue, Utterance
from amuse.encoders.hub import encoder_folder
from amuse.encoders.text import WordReader
from amuse.encoders.words import check_text_weights
from amuse.evaluation.calibration import load_temperature
from amuse.evaluation.load import load_as_read, load_best
from amuse.evaluation.predict import predict
from amuse.evaluation.quality import Quality, RegressionQuality
from amuse.explain.explanation import DEFAULTS, ExplainOptions, explain
from amuse.explain.groups import SPACES, WORD_STREAMS
from amuse.explain.sentences import begins_word
from amuse.model.amuse import Amuse
from amuse.progress import progress_bar
from amuse.report.content import Content, Turn
from amuse.report.sentences import sentences

CAUTIONS = {
    "train": "The model was trained on these utterances: expect lower scores on new data.",
    "valid": "These utterances chose the checkpoint and the temperature: expect slightly lower scores on new data.",
}
"""Split -> why its scores are better than on new data."""


def explain_run(
    run: Path,
    dialogue: str | None = None,
    options: ExplainOptions = DEFAULTS,
    *,
    split: str = "test",
    progress: bool = True,
) -> Content:
    """The content of the report of one dialogue of a run's data.

    Args:
        run: Folder of the run.
        dialogue: Id; None = the first of the split.
        options: Method, number of samples and seed.
        split: "train", "valid" or "test".
        progress: Show a progress bar, on a terminal only.

    Raises:
        FileNotFoundError: No such run or data.
        ValueError: No such dialogue.
    """
    model, standardizer, config = load_best(run)
    device = next(model.parameters()).device
    conversations = load_as_read(model, standardizer, config, split)

    @cache
    def reader() -> WordReader:
        check_text_weights(run, config.data)
        return WordReader(config.data, device)

    chosen = _find(conversations, dialogue)
    temperature = load_temperature(run)
    by_words = options.method != "gradients"  # which explains whole tokens, and needs no text encoder
    turns = []
    count = len(chosen)
    what = f"explaining {count} utterances"
    for position, utterance in enumerate(
        progress_bar(what, count, "utt", over=chosen.utterances, shown=progress, leave=False)
    ):
        explanation = explain(
            model,
            chosen,
            position,
            options,
            pieces=word_pieces(utterance, model, config.data),
            temperature=temperature,
            sentences=sentences(chosen, position, config.data, standardizer, reader) if by_words else None,
        )
        turns.append(Turn(utterance, explanation))
    predictions = predict(model, conversations, config.train.batch_size)
    labels = predictions.labels
    quality: Quality | RegressionQuality | None = None
    if labels is not None and model.spec.label_names is None:
        quality = RegressionQuality.measure(predictions.logits[:, 0], labels)
    elif labels is not None:
        assert model.spec.label_names is not None
        quality = Quality.measure(predictions.probabilities(temperature), labels, model.spec.label_names)
    source = f"{config.data.dataset}, {split} split, dialogue {chosen.id}"
    card = model_card(model, temperature, source, options)
    return Content(
        f"Conversation {chosen.id}",
        turns,
        model.spec.label_names,
        model.modalities,
        card,
        quality,
        CAUTIONS.get(split, ""),
    )


def model_card(model: Amuse, temperature: float, source: str, options: ExplainOptions) -> dict[str, str]:
    """Facts about the model and how the report was made."""
    card = {
        "Model": f"AMuSE, {sum(p.numel() for p in model.parameters()):,} parameters",
        "Modalities": ", ".join(model.modalities),
        "Fusion, context": f"{model.config.fusion}, {model.config.temporal}",
        "Data": source,
        "Explanation": str(options),
    }
    if model.spec.label_names is not None:
        card["Probabilities"] = f"softmax at temperature {temperature:.2f}"
    return card


def _find(conversations: Conversations, name: str | None) -> Dialogue:
    if name is None:
        return conversations[0]
    for dialogue in conversations.dialogues:
        if dialogue.id == name:
            return dialogue
    some = ", ".join(dialogue.id for dialogue in conversations.dialogues[:3])
    raise ValueError(f"dialogue: expected the id of one of {len(conversations)} dialogues ({some}, ...), got {name!r}")


def word_pieces(utterance: Utterance, model: Amuse, data: DataConfig) -> dict[str, list[str | None]]:
    """The word piece of each token of a stream that a text encoder made; streams without one are left out."""
    pieces: dict[str, list[str | None]] = {}
    for stream in WORD_STREAMS:
        tokens = utterance.features.get(stream)
        if tokens is None or data.dataset == "synthetic" or data.pool:
            continue
        if model.spec.modalities.get(stream) == TOKEN_IDS:
            tokenizer = _tokenizer(data.encoder)
            ids = tokens.tolist()
            special = set(tokenizer.all_special_ids)
            named = transcript_pieces(tokenizer, utterance.text or "", [i for i in ids if i not in special])
            rest = iter(named or tokenizer.convert_ids_to_tokens([i for i in ids if i not in special]))
            pieces[stream] = [None if i in special else next(rest) for i in ids]
        elif utterance.text and len(tokens) > 1:
            # an encoder's features are those of the words alone, cut at the end where they were too many
            tokenizer = _tokenizer(data.encoder)
            ids = tokenizer(utterance.text, add_special_tokens=False)["input_ids"][: len(tokens)]
            if len(ids) == len(tokens):
                named = transcript_pieces(tokenizer, utterance.text, ids)
                pieces[stream] = list(named or tokenizer.convert_ids_to_tokens(ids))
    return pieces


def transcript_pieces(tokenizer: Any, text: str, ids: list[int]) -> list[str] | None:
    """The transcript's own letters behind each token, `▁` before the first of a word; None where they are unknown.

    Tokenizers write lower case, without accents, or bytes; readers want the words that they know, divided as
    `amuse.explain.sentences.begins_word` tells.
    """
    if not tokenizer.is_fast:
        return None
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if encoded["input_ids"][: len(ids)] != ids:
        return None
    pieces = []
    for start, end in encoded["offset_mapping"][: len(ids)]:
        while start < end and text[start].isspace():
            start += 1
        # a token may begin with signs that cannot be seen, before the first letter of its word
        begins = any(begins_word(text, index) for index in range(start, max(end, start + 1)))
        pieces.append(SPACES[-1] * begins + text[start:end])
    return pieces


def _tokenizer(encoder: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(encoder_folder(encoder), local_files_only=True)
