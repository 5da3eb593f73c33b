"""p2c_attention in the place of a transformers model's attention: the same numbers, and refusal of everything else."""

import copy

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra: pip install amuse-kernels[hf]")

import transformers

from amuse.hf.attention import P2C, attend

SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "vocab_size": 40,
    "max_position_embeddings": 64,
}
BERT = transformers.BertConfig(**SIZE)
LLAMA = transformers.LlamaConfig(**SIZE, num_key_value_heads=2, pad_token_id=0)
GPT2 = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=40, n_positions=64)


def pair(config, other="sdpa", kind=transformers.AutoModel):
    """The same model with p2c_attention and with another attention."""
    models = []
    for attention in (P2C, other):
        torch.manual_seed(0)
        models.append(kind.from_config(copy.deepcopy(config), attn_implementation=attention).eval())
    assert [model.config._attn_implementation for model in models] == [P2C, other]
    return models


def padded(left=False):
    torch.manual_seed(1)
    ids = torch.randint(1, 40, (3, 9))
    mask = torch.arange(9) < torch.tensor([[9], [5], [1]])
    return {"input_ids": ids, "attention_mask": (mask.flip(1) if left else mask).long()}


@pytest.mark.parametrize("other", ["sdpa", "eager"])
@pytest.mark.parametrize("config", [BERT, LLAMA, GPT2], ids=lambda config: config.model_type)
def test_hidden_states_are_those_of_other_attentions(config, other):
    ours, theirs = pair(config, other)
    for inputs in (padded(), {"input_ids": padded()["input_ids"]}):
        real = inputs.get("attention_mask", torch.ones(3, 9)).bool()
        torch.testing.assert_close(
            ours(**inputs).last_hidden_state[real], theirs(**inputs).last_hidden_state[real], rtol=0, atol=1e-5
        )


def test_padding_is_not_attended_to():
    ours, _ = pair(BERT)
    inputs = padded()
    changed = {**inputs, "input_ids": torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], 7)}
    real = inputs["attention_mask"].bool()
    assert torch.equal(ours(**inputs).last_hidden_state[real], ours(**changed).last_hidden_state[real])


def test_gradients_are_those_of_other_attentions():
    ours, theirs = pair(BERT)
    inputs = padded()
    for model in (ours, theirs):
        model(**inputs).last_hidden_state[inputs["attention_mask"].bool()].square().sum().backward()
    for a, b in zip(ours.encoder.parameters(), theirs.encoder.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


def test_dropout_drops_weights_and_keeps_their_mean():
    config = transformers.BertConfig(**{**SIZE, "num_hidden_layers": 1}, attention_probs_dropout_prob=0.5)
    ours, _ = pair(config)
    attention = ours.encoder.layer[0].attention.self.train()
    tokens = torch.randn(1, 8, 32)
    draws = torch.stack([attention(tokens)[0] for _ in range(800)])
    assert draws.std(dim=0).min() > 0
    torch.testing.assert_close(draws.mean(dim=0), attention.eval()(tokens)[0], rtol=0, atol=0.1)


@pytest.mark.parametrize("left", [False, True])
def test_text_is_generated_alike_from_cached_keys(left):
    ours, theirs = pair(LLAMA, kind=transformers.AutoModelForCausalLM)
    inputs = padded(left=True) if left else {"input_ids": padded()["input_ids"]}
    texts = [model.generate(**inputs, max_new_tokens=6, do_sample=False) for model in (ours, theirs)]
    assert torch.equal(*texts)


def test_patterns_beyond_causal_and_padding_are_refused():
    sliding = transformers.MistralConfig(**SIZE, num_key_value_heads=2, sliding_window=4, pad_token_id=0)
    ours, _ = pair(sliding)
    with pytest.raises(ValueError, match="expected a causal mask or one of padding only"):
        ours(**padded())
    packed, _ = pair(LLAMA)
    with pytest.raises(ValueError, match="expected a causal mask or one of padding only"):
        packed(padded()["input_ids"], position_ids=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]), use_cache=False)
    with pytest.raises(ValueError, match="softcap: not supported"):
        attend(packed, *[torch.randn(1, 2, 3, 8)] * 3, None, softcap=2.0)
    with pytest.raises(ValueError, match="got 3 queries for 5 keys"):
        attend(packed, *[torch.randn(1, 2, n, 8) for n in (3, 5, 5)], None, is_causal=True)


def test_heads_of_unsupported_width_are_refused():
    ours, _ = pair(transformers.BertConfig(**{**SIZE, "num_attention_heads": 8}))
    with pytest.raises(ValueError, match="multiple of 8"):
        ours(**padded())


def test_amuses_text_encoder_runs_on_it():
    from amuse.encoders.trainable import TextEncoder
    from amuse.layout import Layout

    config = BERT.to_dict()
    torch.manual_seed(0)
    plain = TextEncoder(config).eval()
    torch.manual_seed(0)
    ours = TextEncoder({**config, "attn_implementation": P2C}).eval()
    assert ours.model.config._attn_implementation == P2C
    inputs = padded()
    mask = inputs["attention_mask"].bool()
    ids, layout = inputs["input_ids"][mask], Layout.of(mask.sum(1))
    torch.testing.assert_close(ours(ids, layout), plain(ids, layout), rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=lambda config: config.model_type)
def test_a_static_caches_unwritten_keys_are_not_attended_to(config):
    ours, theirs = pair(config, "eager", transformers.AutoModelForCausalLM)
    ids = torch.tensor([[3], [7]])
    options = {"max_new_tokens": 8, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    static = {"cache_implementation": "static", "disable_compile": True}
    found, expected = (model.generate(ids, **options, **static).logits for model in (ours, theirs))
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=0, atol=1e-5)
