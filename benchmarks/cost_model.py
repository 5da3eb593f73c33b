"""Cost of training: parameters, operations, memory and traffic from a configuration, and hours from those.

Counted exactly: parameters, and the operations of matrix products, LSTMs and attention. Estimated: activations, to a
quarter. Assumed: what share of a device's peak is reached, which has to be measured. `benchmarks/scaling.py` compares
with measured runs of one and two processes; docs/scaling.md says what follows.
"""

from dataclasses import dataclass

from amuse.config import ModelConfig
from amuse.data.spec import DataSpec

FLOAT = 4  # bytes; weights, gradients and optimiser states are fp32 whatever the autocast


@dataclass(frozen=True)
class Device:
    """One GPU (or CPU core) and its link to the others.

    Attributes:
        flops: Operations a second that training reaches, not the peak.
        memory: Bytes.
        bandwidth: Bytes a second that it sends to the other devices while it receives as many.
        latency: Seconds of one exchange.
        overhead: Seconds of a step that do not depend on its size, such as starting operations.
    """

    flops: float
    memory: float
    bandwidth: float
    latency: float = 1e-5
    overhead: float = 0.0


@dataclass(frozen=True)
class Cost:
    """Cost of one training step on one device, and of a whole training.

    Attributes:
        memory: Bytes. traffic: bytes sent. compute: seconds. exchange: seconds, if nothing of it is hidden.
        step: Seconds, the exchange hidden behind the backward pass as far as that lasts.
    """

    memory: float
    traffic: float
    compute: float
    exchange: float
    step: float

    def hours(self, utterances: float, epochs: int, per_device: int, devices: int) -> float:
        """Hours for so many epochs over so many utterances, `per_device` of them a step on each device."""
        return utterances * epochs / (per_device * devices) * self.step / 3600


def parameters(config: ModelConfig, spec: DataSpec) -> int:
    """Number of parameters of `Amuse(config, spec)`, encoders not counted."""
    groups = config.groups(spec.modalities)
    d, count, outputs = config.d_model, len(groups), spec.num_outputs
    streams = 0
    for names in groups.values():
        for name in names:
            width = spec.modalities[name]
            streams += _bilstm(width, d) if config.unimodal_lstm else _linear(width, d)
            streams += 2 * d
        streams += config.unimodal_layers * _attention_layer(1, config, gate=False)
    central = count * config.man_layers * _attention_layer(count - 1, config) if config.man else 0
    fusion = count * (count - 1) * (2 * d + 1) if config.fusion == "learned" else 0
    fused = d if config.fusion == "chain" else count * d
    temporal, context = _linear(fused, d) + 2 * d, d
    if config.temporal == "bilstm":
        layers = _bilstm(d, d) * config.temporal_layers
        temporal, context = temporal + 2 * layers, 3 * d
    elif config.temporal == "attention":
        attention = 6 * _linear(d, d) + 2 * config.num_heads
        temporal += config.temporal_layers * (attention + 4 * d + _linear(d, 2 * d) + _linear(2 * d, d))
        context = 2 * d
    voice = _linear(count * d, d) if config.speaker_head else 0
    heads = count * _linear(d, outputs) + _linear(context, outputs)
    return streams + central + fusion + temporal + voice + heads


def forward_flops(config: ModelConfig, spec: DataSpec, tokens: dict[str, int], context: int = 10) -> float:
    """Multiplications and additions for one utterance, without encoders.

    Args:
        tokens: Per stream of the data.
        context: Utterances of a dialogue, for temporal attention.
    """
    groups = config.groups(spec.modalities)
    d, count = config.d_model, len(groups)
    lengths = [sum(tokens[name] for name in names) for names in groups.values()]
    total = 0.0
    for names, length in zip(groups.values(), lengths, strict=True):
        for name in names:
            width = spec.modalities[name]
            weights = _bilstm_weights(width, d) if config.unimodal_lstm else width * d
            total += 2 * weights * tokens[name]
        total += config.unimodal_layers * _attention_flops(length, [length], config)
    if config.man:
        for m, length in enumerate(lengths):
            others = [n for i, n in enumerate(lengths) if i != m]
            total += config.man_layers * _attention_flops(length, others, config)
    fused = d if config.fusion == "chain" else count * d
    total += 2 * fused * d
    if config.fusion == "learned":
        total += count * (count - 1) * 4 * d
    width = d
    if config.temporal == "bilstm":
        width = 3 * d
        total += 2 * 2 * config.temporal_layers * _bilstm_weights(d, d)
    elif config.temporal == "attention":
        width = 2 * d
        total += config.temporal_layers * (2 * (6 * d * d + 4 * d * d) + 2 * 4 * context * d)
    if config.speaker_head:
        total += 2 * count * d * d
    return total + 2 * (count * d + width) * spec.num_outputs


def activation_bytes(config: ModelConfig, spec: DataSpec, tokens: dict[str, int], recompute: bool = False) -> float:
    """About how much the backward pass keeps of one utterance.

    A token costs 8.5 d floats in an attention layer (norms, query, output, dense layer, dropout masks), 2 d more for
    every source that reads it as key and value, and 11 d in a Bi-LSTM (gates, cells, states): fitted to what PyTorch
    keeps on a CPU in fp32. With `recompute` the stages' inputs are kept, the injected keys and values with their
    gradients, and one stage of one modality in full, that of the most tokens.
    """
    groups = config.groups(spec.modalities)
    d, count = config.d_model, len(groups)
    of_modality = [sum(tokens[name] for name in names) for names in groups.values()]
    total_tokens, most_tokens = sum(of_modality), max(of_modality)
    inputs = sum(tokens[name] * spec.modalities[name] for names in groups.values() for name in names)
    layer = 8.5 * d
    unimodal = (11 if config.unimodal_lstm else 3) * d + config.unimodal_layers * (layer + 2 * d)
    central = config.man_layers * layer if config.man else 0
    injected = config.man_layers * 2 * (count - 1) * d if config.man else 0
    temporal = {"bilstm": 40, "attention": 30 * config.temporal_layers, "none": 6}[config.temporal] * d
    if recompute:
        in_the_network = 2 * injected * total_tokens + central * most_tokens
        return FLOAT * (inputs + 2 * d * total_tokens + max(in_the_network, unimodal * most_tokens) + temporal)
    return FLOAT * (inputs + (unimodal + central + injected) * total_tokens + temporal)


def cost(
    weights: float,
    flops: float,
    activations: float,
    utterances: int,
    device: Device,
    devices: int,
    *,
    strategy: str = "ddp",
    block: float | None = None,
    accumulate: int = 1,
    ema: bool = False,
    recompute: bool = False,
) -> Cost:
    """One training step.

    Args:
        weights: Parameters. flops: of one utterance's forward pass; a backward pass has twice as many.
        activations: Bytes of one utterance.
        utterances: Of a step on each device.
        devices: That share a step.
        strategy: "ddp": gradients are summed, 2 (n - 1) / n of their size sent | "fsdp": weights gathered for forward
            and backward of every part and gradients scattered, (n - 1) / n each.
        block: Parameters of FSDP's largest block; default: a tenth of all.
        accumulate: Parts of a step. ema, recompute: as in the configuration.
    """
    copies = 4 + ema  # weights, gradients, two moments
    passes = 4 if recompute else 3
    ring = (devices - 1) / devices
    if strategy == "fsdp":
        gathered = 2 * (weights / 10 if block is None else block)  # the one that runs and the one that comes next
        memory = FLOAT * (copies * weights / devices + gathered)
        traffic = FLOAT * weights * ring * (2 * accumulate + 1)
        exchanges = 2 * accumulate + 1
    else:
        memory, traffic, exchanges = FLOAT * copies * weights, FLOAT * weights * ring * 2, 1
    memory += activations * utterances / accumulate
    compute = passes * flops * utterances / device.flops + device.overhead
    exchange = 0.0
    if devices > 1:
        exchange = traffic / device.bandwidth + exchanges * device.latency * 2 * (devices - 1)
    hidden = min(exchange, compute * 2 / 3)
    return Cost(memory, traffic, compute, exchange, compute + exchange - hidden)


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _bilstm_weights(inputs: int, outputs: int) -> int:
    half = outputs // 2
    return 2 * 4 * half * (inputs + half)


def _bilstm(inputs: int, outputs: int) -> int:
    return _bilstm_weights(inputs, outputs) + 2 * 2 * 4 * (outputs // 2)  # two biases a gate and direction


def _merged(config: ModelConfig) -> int:
    return config.d_model if config.head_merge == "concat" else config.d_model // config.num_heads


def _attention_layer(sources: int, config: ModelConfig, gate: bool = True) -> int:
    d = config.d_model
    dense = 2 * d + _linear(d, d)
    if not sources:
        return dense
    gates = {"mean": 0, "learned": config.num_heads * sources, "input": _linear(d, config.num_heads * sources)}
    projections = (1 + 2 * sources) * _linear(d, d) + _linear(_merged(config), d)
    return dense + 2 * d + projections + (gates[config.man_gate] if gate else 0)


def _attention_flops(queries: int, keys: list[int], config: ModelConfig) -> float:
    d = config.d_model
    dense = 2 * d * d * queries
    if not keys:
        return dense
    projections = 2 * d * (d * queries + 2 * d * sum(keys) + _merged(config) * queries)
    return dense + projections + 4 * queries * sum(keys) * d
