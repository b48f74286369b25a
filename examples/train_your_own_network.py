"""Train another network on a shard set: accelerate launch examples/train_your_own_network.py SHARDS OUT [STEPS]

The network is a small U-Net that corrects the interpolated low-field image. It reads the samples in the same order as
`upfield train`, so each step has the same global batch on any number of processes.
"""

import sys

import torch
from accelerate import Accelerator
from torch import nn

import upfield
from upfield.distributed.samples.order import SampleOrder

if len(sys.argv) < 3:
    sys.exit(__doc__)
shards, out = upfield.open_shards(sys.argv[1]), sys.argv[2]
steps, batch_size = int(sys.argv[3]) if len(sys.argv) > 3 else 1000, 8


class UNet(nn.Module):
    def __init__(self, channels, width=32):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.GELU())
        self.down = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.GELU(), nn.Conv2d(2 * width, width, 3, 1, 1))
        self.last = nn.Conv2d(2 * width, 1, 3, padding=1)

    def forward(self, low):
        fine = self.first(low)
        coarse = nn.functional.interpolate(self.down(fine), size=low.shape[2:], mode="bilinear")
        centre = low.shape[1] // 2
        return low[:, centre : centre + 1] + self.last(torch.cat([fine, coarse], 1))


accelerator = Accelerator()
torch.manual_seed(0)
train, val = shards.split("train"), shards.split("val")
network = UNet(train.low_shape[0])
network, optimizer = accelerator.prepare(network, torch.optim.Adam(network.parameters(), 1e-3))
order = SampleOrder(seed=0, shard_sizes=train.shard_sizes, batch_size=batch_size, window_shards=16)
for step in range(steps):
    samples = order.share(step, accelerator.process_index, accelerator.num_processes)
    low, high = (torch.from_numpy(array).float().to(accelerator.device) for array in train.read_checked(samples))
    loss = nn.functional.l1_loss(network(low), high)
    optimizer.zero_grad()
    accelerator.backward(loss)
    optimizer.step()
    if (step + 1) % 10 == 0:
        accelerator.print(f"step {step + 1}: L1 {accelerator.reduce(loss.detach(), 'mean'):.4f}", flush=True)

model, errors = accelerator.unwrap_model(network), []
with torch.inference_mode():
    for number in range(accelerator.process_index, len(val), accelerator.num_processes):
        pair = val[number]
        restored = model(torch.from_numpy(pair.low)[None].to(accelerator.device)).clamp(0, 1)[0, 0].cpu().numpy()
        cubic = pair.low[len(pair.low) // 2]
        errors.append([float(((image - pair.high[0]) ** 2).mean()) for image in (restored, cubic)])
errors = accelerator.gather_for_metrics(errors, use_gather_object=True)
psnr, cubic = -10 * torch.tensor(errors).clamp(min=1e-10).log10().mean(0)
accelerator.print(f"validation, {len(errors)} slices: PSNR {psnr:.2f} dB, cubic interpolation {cubic:.2f} dB")
accelerator.save_model(network, out)
