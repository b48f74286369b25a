"""Writes AMIR as ONNX nodes, each layer with the operators that ONNX Runtime computes fastest.

This module writes the graph by hand instead of tracing the network. PyTorch's exporter took minutes for the preset
`official`, wrote many nodes for one layer, and its output depends on its version. An export with this module takes 44 s
on two CPU cores, including the comparison in parity.py. On two CPU cores, a slice of `official` takes 1.83 s in ONNX
Runtime, 4.08 s in the published PyTorch code and 1.86 s in ours (benchmarks/tables/inference.txt).

Between blocks, images are `(N, H, W, C)`, so that layer norm reads rows of channels and attention is one matrix
product. Convolutions take `(N, C, H, W)`. ONNX Runtime rearranges their input into blocks of channels anyway, so the
transpositions cost nothing. The functions take and return tensors by their names in the graph. Islands are constants
and layers that stay float32 in a float16 graph.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upfield.export.modelfile.nodes import NodeWriter
from upfield.model.amir import SIZE_MULTIPLE, Amir
from upfield.model.blocks import (
    NORM_EPSILON,
    ChannelAttention,
    ChannelNorm,
    Downsample,
    GatedFeedForward,
    TransformerBlock,
    Upsample,
    next_multiple,
)
from upfield.model.routing import (
    TOP_K,
    UNDERFLOW_LOG,
    UNDERFLOW_VALUE,
    ChannelRouting,
    InstructionNetwork,
    SpatialMixture,
    SpatialRouting,
)

# ONNX Runtime's convolutions handle blocks of 16 channels; depthwise ones with other counts use slower code.
CHANNEL_BLOCK = 16
CHANNELS_LAST, CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def write_network(w: NodeWriter, network: Amir, low: str) -> str:
    """Write a whole network.

    Args:
        w: collects the nodes.
        network: in evaluation mode, on the CPU.
        low: name of the input `(N, in_channels, H, W)` float32; H and W are at least 9.

    Returns:
        Name of the restored slices `(N, 1, H, W)` float32.
    """
    image, size = _pad(w, low)
    instruction = _instruct(w, network.dict_generator, image)
    x = w.op("Conv", w.from_island(image), w.weight(network.patch_embed.proj.weight), pads=[1] * 4)
    x, skips = _encode(w, network, x, instruction)
    x = _decode(w, network, x, skips, instruction)
    residual = w.to_island(w.op("Conv", x, w.weight(network.output.weight), pads=[1] * 4))
    if (channels := network.config.in_channels) > 1:
        image = _cut(w, image, 1, channels // 2, channels // 2 + 1)
    return w.op("Slice", w.op("Add", residual, image), w.integers(0, 0), size, w.integers(2, 3))


def _pad(w: NodeWriter, low: str) -> tuple[str, str]:
    """Pad by reflection at the end until height and width are multiples of 8; also return the original size.

    Rows and columns are selected by index, as in model/amir.py, because ONNX Runtime 1.21 runs `Pad` of this opset on
    the CPU even if there is a GPU.
    """
    size = w.op("Shape", low, start=2, end=4)
    padded = w.op("Add", size, w.op("Mod", w.op("Neg", size), w.integers(SIZE_MULTIPLE)))
    image = low
    for dim in (2, 3):
        length, last = (w.op("Gather", each, w.index(dim - 2)) for each in (padded, w.op("Sub", size, w.integers(1))))
        places = w.op("Range", w.index(0), length, w.index(1))
        mirrored = w.op("Sub", w.op("Add", last, last), places)
        image = w.op("Gather", image, w.op("Min", places, mirrored), axis=dim)
    return image, size


def _instruct(w: NodeWriter, network: InstructionNetwork, image: str) -> str:
    """Write the instruction network. Its output `(N, 256)` is small and routes all pixels, so it is an island."""
    x = image
    for layer in network.CondNet:
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None
            x = w.op("Conv", x, w.island(layer.weight), w.island(layer.bias), strides=list(layer.stride))
        else:
            assert isinstance(layer, nn.LeakyReLU)
            x = w.op("LeakyRelu", x, alpha=layer.negative_slope)
    condition = w.op("ReduceMean", x, w.integers(2, 3), keepdims=0)
    alpha = w.op("Softmax", _linear(w, network.lastOut, condition), axis=-1)
    return w.op("Gelu", w.op("MatMul", alpha, w.island(network.dictionary)))


def _encode(w: NodeWriter, network: Amir, x: str, instruction: str) -> tuple[str, list[str]]:
    skips: list[str] = []
    for level in (1, 2, 3):
        x = _route_pixels(w, getattr(network, f"spatial_routing_encoder_level{level}"), x, instruction)
        x = _blocks(w, getattr(network, f"encoder_level{level}"), x)
        skips.append(x)
        x = _halve(w, getattr(network, f"down{level}_{level + 1}"), x)
    return _blocks(w, network.latent, _route_channels(w, network.channel_routing_latent, x, instruction)), skips


def _decode(w: NodeWriter, network: Amir, x: str, skips: list[str], instruction: str) -> str:
    for level in (3, 2, 1):
        x = w.op("Concat", _double(w, getattr(network, f"up{level + 1}_{level}"), x), skips[level - 1], axis=1)
        if level > 1:
            x = w.op("Conv", x, w.weight(getattr(network, f"reduce_chan_level{level}").weight))
        x = _route_channels(w, getattr(network, f"channel_routing_decoder_level{level}"), x, instruction)
        x = _blocks(w, getattr(network, f"decoder_level{level}"), x)
    return _blocks(w, network.refinement, x)


def _halve(w: NodeWriter, layer: Downsample, x: str) -> str:
    """Convolve and unshuffle pixels. ONNX orders the result by position, then channel; PyTorch does the reverse."""
    conv = layer.body[0]
    assert isinstance(conv, nn.Conv2d)
    x = w.op("SpaceToDepth", w.op("Conv", x, w.weight(conv.weight), pads=[1] * 4), blocksize=2)
    order = np.arange(4 * conv.out_channels).reshape(4, conv.out_channels).T
    return w.op("Gather", x, w.constant(order.ravel()), axis=1)


def _double(w: NodeWriter, layer: Upsample, x: str) -> str:
    conv = layer.body[0]
    assert isinstance(conv, nn.Conv2d)
    return w.op("DepthToSpace", w.op("Conv", x, w.weight(conv.weight), pads=[1] * 4), blocksize=2, mode="CRD")


def _blocks(w: NodeWriter, blocks: nn.Sequential, x: str) -> str:
    if len(blocks) == 0:
        return x
    x = w.op("Transpose", x, perm=CHANNELS_LAST)
    for block in blocks:
        assert isinstance(block, TransformerBlock)
        x = w.op("Add", _attend(w, block.attn, _normalise(w, block.norm1, x)), x)
        x = w.op("Add", _feed_forward(w, block.ffn, _normalise(w, block.norm2, x)), x)
    return w.op("Transpose", x, perm=CHANNELS_FIRST)


def _normalise(w: NodeWriter, norm: ChannelNorm, x: str) -> str:
    """Normalise the channels of `(N, H, W, C)` in float32, and return `(N, C, H, W)`."""
    scale, shift = w.island(norm.body.weight), w.island(norm.body.bias)
    y = w.op("LayerNormalization", w.to_island(x), scale, shift, axis=-1, epsilon=norm.body.eps)
    return w.op("Transpose", w.from_island(y), perm=CHANNELS_FIRST)


def _attend(w: NodeWriter, attention: ChannelAttention, x: str) -> str:
    """Write the attention between the channels of `(N, C, H, W)`, and return `(N, H, W, C)`."""
    heads, channels = attention.num_heads, attention.project_out.in_channels
    q, k, v = _project_and_filter(w, x, attention.qkv, attention.qkv_dwconv, 3)
    q, k = (_heads(w, each, heads, channels) for each in (q, k))
    scores = w.op("Softmax", _cosines(w, attention, q, k), axis=-1)  # (N, heads, c, c), c = C / heads
    # Attention and projection are combined into one matrix per image, (channels in, channels out). See model/blocks.py.
    out = attention.project_out.weight.reshape(channels, heads, -1).transpose(0, 1)
    matrix = w.op("Transpose", w.op("MatMul", w.island(out), scores), perm=(0, 1, 3, 2))
    matrix = w.op("Reshape", matrix, w.integers(0, 1, channels, channels))
    if channels % CHANNEL_BLOCK:
        # This product appends rows of zeros for the padded channels of v. `_pad` says why this is not `Pad`.
        rows = np.eye(next_multiple(channels, CHANNEL_BLOCK), channels, dtype=np.float32)
        matrix = w.op("MatMul", w.constant(rows), matrix)
    return w.op("MatMul", w.op("Transpose", v, perm=CHANNELS_LAST), w.from_island(matrix))


def _heads(w: NodeWriter, x: str, heads: int, channels: int) -> str:
    """Reshape `(N, C padded, H, W)` to `(N, heads, C/heads, P)`, P = H*W."""
    if channels % CHANNEL_BLOCK:
        x = _cut(w, x, 1, 0, channels)
    return w.op("Reshape", x, w.integers(0, heads, channels // heads, -1))


def _cosines(w: NodeWriter, attention: ChannelAttention, q: str, k: str) -> str:
    """Return the cosines `(N, heads, c, c)` between the channels of q and k `(N, heads, c, P)`, times temperature."""
    temperature = w.island(attention.temperature.unsqueeze(0))
    q, k = (w.to_island(each) for each in (q, k))
    norms = (w.op("Max", w.op("ReduceSumSquare", each, w.integers(3)), w.scalar(NORM_EPSILON**2)) for each in (q, k))
    rows, columns = (w.op("Sqrt", each) for each in norms)
    if w.half:
        # The sum of 50,000 products can overflow float16, so the division comes first.
        q, k = (w.from_island(w.op("Div", each, norm)) for each, norm in ((q, rows), (k, columns)))
        cosines = w.to_island(w.op("MatMul", q, w.op("Transpose", k, perm=(0, 1, 3, 2))))
        return w.op("Mul", cosines, temperature)
    products = w.op("MatMul", q, w.op("Transpose", k, perm=(0, 1, 3, 2)))
    scaled = w.op("Mul", products, w.op("Div", temperature, rows))
    return w.op("Div", scaled, w.op("Transpose", columns, perm=(0, 1, 3, 2)))


def _feed_forward(w: NodeWriter, layer: GatedFeedForward, x: str) -> str:
    """Write the gated feed-forward layer of `(N, C, H, W)`, and return `(N, H, W, C)`."""
    gate, value = _project_and_filter(w, x, layer.project_in, layer.dwconv, 2)
    product = w.op("Mul", w.op("Gelu", gate), value)
    weight = _padded(layer.project_out.weight.flatten(1).T).T
    return w.op("Transpose", w.op("Conv", product, w.weight(weight[:, :, None, None])), perm=CHANNELS_LAST)


def _project_and_filter(w: NodeWriter, x: str, projection: nn.Conv2d, kernels: nn.Conv2d, parts: int) -> list[str]:
    """Write a 1x1 and a depthwise 3x3 convolution for each of `parts`, because slicing a joint result would copy it."""
    pairs = zip(projection.weight.flatten(1).chunk(parts), kernels.weight.flatten(1).chunk(parts), strict=True)
    outputs: list[str] = []
    for matrix, rows in pairs:
        mixed = w.op("Conv", x, w.weight(_padded(matrix)[:, :, None, None]))
        kernel = _padded(rows).unflatten(1, (1, 3, 3))
        outputs.append(w.op("Conv", mixed, w.weight(kernel), pads=[1] * 4, group=len(kernel)))
    return outputs


def _padded(rows: Tensor) -> Tensor:
    """Pad `(R, K)` with rows of zeros to a multiple of the channel block."""
    return F.pad(rows, (0, 0, 0, next_multiple(len(rows), CHANNEL_BLOCK) - len(rows)))


def _route_pixels(w: NodeWriter, routing: SpatialRouting, x: str, instruction: str) -> str:
    """Add to each pixel of `(N, C, H, W)` the outputs of its experts, mixed in log space."""
    mixture, channels = routing.moe, routing.fc.out_features
    pixels = w.op("Reshape", x, w.integers(0, 1, channels, -1))  # all experts get the same image
    hidden = w.op("Gelu", _expert_layer(w, mixture, "fc1", pixels))
    outputs = w.to_island(_expert_layer(w, mixture, "fc2", hidden))  # (N, E, C, P)
    log_gates = _gate(w, mixture, w.to_island(x), _linear(w, routing.fc, instruction))
    terms = w.op("Add", outputs, w.op("Unsqueeze", log_gates, w.integers(2)))
    mixed = w.op("ReduceLogSumExp", terms, w.integers(1), keepdims=0)
    underflow = w.op("Less", mixed, w.scalar(UNDERFLOW_LOG))
    mixed = w.op("Where", underflow, w.scalar(UNDERFLOW_VALUE), mixed)
    return w.op("Add", x, w.op("Reshape", w.from_island(mixed), w.op("Shape", x)))


def _expert_layer(w: NodeWriter, mixture: SpatialMixture, name: str, x: str) -> str:
    """Apply one layer of all E experts at once: `(N, 1 or E, in, P)` to `(N, E, out, P)`."""
    layers = [expert.get_submodule(name) for expert in mixture.experts]
    weight, bias = (torch.stack([layer.get_parameter(part) for layer in layers]) for part in ("weight", "bias"))
    return w.op("Add", w.op("MatMul", w.weight(weight), x), w.weight(bias.unsqueeze(-1)))


def _gate(w: NodeWriter, mixture: SpatialMixture, x: str, instruction: str) -> str:
    """Return the log gates `(N, E, P)` in float32: minus infinity for all but the two largest logits."""
    from_pixel, from_image = mixture.w_gate.chunk(2)
    pixels = w.op("Reshape", x, w.integers(0, len(from_pixel), -1))
    offset = w.op("Unsqueeze", w.op("MatMul", instruction, w.island(from_image)), w.integers(2))
    logits = w.op("Add", w.op("MatMul", w.island(from_pixel.T), pixels), offset)
    values, experts = w.ops("TopK", logits, w.integers(TOP_K), num_outputs=2, axis=1)
    closed = w.op("Expand", w.scalar(-math.inf), w.op("Shape", logits))
    return w.op("ScatterElements", closed, experts, w.op("LogSoftmax", values, axis=1), axis=1)


def _route_channels(w: NodeWriter, routing: ChannelRouting, x: str, instruction: str) -> str:
    """Scale and shift the channels of `(N, C, H, W)`."""
    gate = w.op("Unsqueeze", w.op("Sigmoid", _linear(w, routing.fc, instruction)), w.integers(2, 3))
    scale, shift = (w.from_island(w.op("Mul", w.island(each), gate)) for each in (routing.gamma, routing.beta))
    # Computed as x + (x * scale + shift), because float16 would round small scales away in 1 + scale.
    return w.op("Add", x, w.op("Add", w.op("Mul", x, scale), shift))


def _linear(w: NodeWriter, layer: nn.Linear, x: str) -> str:
    """Apply a linear layer to `(N, in)` in float32."""
    return w.op("Gemm", x, w.island(layer.weight), w.island(layer.bias), transB=1)


def _cut(w: NodeWriter, x: str, axis: int, start: int, stop: int) -> str:
    return w.op("Slice", x, w.integers(start), w.integers(stop), w.integers(axis))
