#!/usr/bin/env python3
"""The step that `adcorda bench resnet8` measures, in PyTorch: the same network, fake quantization, batch and measurements.

    python3 benches/throughput/pytorch.py --weights w2 --batch 64 --seconds 3 --device cpu

Prints one JSON object with the keys of `adcorda bench --json`. Eager PyTorch with its own fused fake quantization, TF32 for
convolutions and matrix products on a GPU as burn has it, the fused AdamW there. `--compile` puts torch.compile on top.
"""

import argparse
import json
import math
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

STRETCHES, WARM_UP = 5, 3
SCALE = 0.05  # Of every activation. Time does not depend on it.


def quantize_weight(weight, width, per_tensor):
    """Straight through, one scale a row, or one for the tensor."""
    fixed = weight.detach()
    rows = fixed.reshape(1, -1) if per_tensor else fixed.flatten(1)
    if width in ("w4", "w8"):
        low, high = {"w4": (-8, 7), "w8": (-127, 127)}[width]
        scale = rows.abs().amax(1) / high
        if per_tensor:
            return torch.fake_quantize_per_tensor_affine(weight, scale[0], scale.new_zeros(1, dtype=torch.int32)[0], low, high)
        zero_points = torch.zeros(len(scale), dtype=torch.int32, device=weight.device)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero_points, 0, low, high)
    magnitude = rows.abs()
    mean = magnitude.mean(1, keepdim=True)
    if width == "w1":
        quantized = torch.where(rows >= 0, mean, -mean)
    else:
        kept = (magnitude > 0.7 * mean).float()
        scale = (magnitude * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp_min(1)
        quantized = rows.sign() * kept * scale
    return weight + (quantized.reshape(weight.shape) - fixed)


def quantize_activation(x, relu):
    """To 8 bits; at zero point -128 negative values are cut off, and that is the ReLU."""
    return torch.fake_quantize_per_tensor_affine(x, SCALE, -128 if relu else 0, -128, 127)


class Conv(nn.Module):
    """Convolution with TensorFlow's "same" padding, BatchNorm where wanted, quantized output."""

    def __init__(self, channels, kernel, stride, width, norm=True, relu=True):
        super().__init__()
        self.conv = nn.Conv2d(*channels, kernel, stride)
        self.norm = nn.BatchNorm2d(channels[1], eps=1e-3) if norm else None
        self.width, self.relu, self.frozen = width, relu, False
        total = max(kernel - stride, 0)
        self.pad = (total // 2, total - total // 2) * 2

    def forward(self, x):
        left, right, _, _ = self.pad
        conv = self.conv
        weight = conv.weight if self.frozen else quantize_weight(conv.weight, self.width, False)
        if left != right:
            x, left = F.pad(x, self.pad), 0
        y = F.conv2d(x, weight, conv.bias, conv.stride, left)
        return quantize_activation(self.norm(y) if self.norm else y, self.relu)


class ResNet8(nn.Module):
    """MLPerf Tiny's image classification network."""

    def __init__(self, width, classes=10):
        super().__init__()
        self.first = Conv((3, 16), 3, 1, "w8")
        self.blocks = nn.ModuleList()
        for channels, stride in (((16, 16), 1), ((16, 32), 2), ((32, 64), 2)):
            inner = (channels[1], channels[1])
            shortcut = Conv(channels, 1, stride, width, norm=False, relu=False) if stride > 1 else nn.Identity()
            self.blocks.append(
                nn.ModuleList([Conv(channels, 3, stride, width), Conv(inner, 3, 1, width, relu=False), shortcut])
            )
        self.last = nn.Linear(64, classes)
        self.frozen = False

    def forward(self, pixels):
        x = self.first(quantize_activation(pixels, True))
        for a, b, shortcut in self.blocks:
            x = quantize_activation(b(a(x)) + shortcut(x), True)
        x = quantize_activation(x.mean((2, 3)), True)
        weight = self.last.weight if self.frozen else quantize_weight(self.last.weight, "w8", True)
        return F.linear(x, weight, self.last.bias)

    def freeze(self):
        """As deployed: weights quantized once, running statistics, no parameter's gradient."""
        with torch.no_grad():
            for conv in self.modules():
                if isinstance(conv, Conv):
                    conv.conv.weight.copy_(quantize_weight(conv.conv.weight, conv.width, False))
                    conv.frozen = True
            self.last.weight.copy_(quantize_weight(self.last.weight, "w8", True))
        self.frozen = True
        return self.eval().requires_grad_(False)


def rate(batch, seconds, step):
    """Images a second: median of stretches, one number read back at the end of each."""

    def stretch(steps):
        start = time.perf_counter()
        for _ in range(steps):
            last = step()
        last.item()
        return time.perf_counter() - start

    stretch(WARM_UP)
    steps = max(1, math.ceil(seconds / STRETCHES / stretch(1)))
    stretches = [batch * steps / stretch(steps) for _ in range(STRETCHES)]
    return {"images_per_second": statistics.median(stretches), "stretches": stretches, "steps": steps}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", choices=("w1", "w2", "w4", "w8"), default="w2")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each of the three measurements")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    device = torch.device(arguments.device)
    x = torch.randint(0, 256, (arguments.batch, 3, 32, 32), device=device).float()
    labels = torch.randint(0, 10, (arguments.batch,), device=device)
    model = ResNet8(arguments.weights).to(device)
    frozen = ResNet8(arguments.weights).to(device).freeze()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=device.type == "cuda")
    if arguments.compile:
        model, frozen = torch.compile(model), torch.compile(frozen)

    def forward():
        with torch.no_grad():
            return frozen(x)[0, 0]

    def training():
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def attack():
        pixels = x.detach().requires_grad_()
        loss = F.cross_entropy(frozen(pixels), labels)
        return torch.autograd.grad(loss, pixels)[0][0, 0, 0, 0]

    measured = {
        name: rate(arguments.batch, arguments.seconds, step)
        for name, step in (("forward", forward), ("training", training), ("attack", attack))
    }
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    engine = "pytorch-compile" if arguments.compile else "pytorch"
    print(
        json.dumps(
            {
                "engine": engine,
                "version": torch.__version__,
                "network": "resnet8",
                "weights": f"w8 {arguments.weights}" if arguments.weights != "w8" else "w8",
                "batch": arguments.batch,
                "device": str(device),
                "device_name": name,
                "threads": torch.get_num_threads(),
                **measured,
            }
        )
    )


if __name__ == "__main__":
    main()
