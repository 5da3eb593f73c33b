"""Folders of tiny transformers encoders with random weights."""

from pathlib import Path

import torch


def write_tiny_encoders(root: Path) -> Path:
    """`vit`, `wav2vec2` and `whisper` in `root`."""
    import transformers

    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vit = transformers.ViTConfig(**size, image_size=32, patch_size=16)
    transformers.ViTModel(vit).save_pretrained(root / "vit")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(root / "vit")
    convolutions = {
        "conv_dim": (16, 16),
        "conv_stride": (20, 16),
        "conv_kernel": (20, 16),
        "num_feat_extract_layers": 2,
    }
    positions = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    wav2vec2 = transformers.Wav2Vec2Config(**size, **convolutions, **positions)
    transformers.Wav2Vec2Model(wav2vec2).save_pretrained(root / "wav2vec2")
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(root / "wav2vec2")
    whisper = transformers.WhisperConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        vocab_size=20,
        pad_token_id=0,
        decoder_start_token_id=1,
    )
    transformers.WhisperModel(whisper).save_pretrained(root / "whisper")
    transformers.WhisperFeatureExtractor().save_pretrained(root / "whisper")
    return root
