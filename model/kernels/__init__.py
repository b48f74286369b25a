"""Triton kernels for the memory-bound parts of a block on GPUs: `(B, H, W, C)` tensors in, tensors of this layout out.

Each file holds one kernel as a `torch.autograd.Function`, and beside it the same computation in plain PyTorch, which is
its definition. `selection.py` says which kernels a network uses. Only the files of kernels import triton, and a module
of the network imports them only when it runs a kernel, so that a network without kernels needs no triton.

A kernel follows these rules, so that it works with autocast, checkpointing, torch.compile, DDP and FSDP:
- Each launch is an operator of `torch.library` (`upfield::NAME`) that allocates its results and has a fake
  implementation. torch.compile therefore keeps it whole in its graph, inside the autograd function, and fake tensors
  can trace a step.
- The function receives parameters as tensors in the forward pass, where FSDP has gathered them, and never keeps a
  module. It does not read `grad` and writes to no input.
- An operator does not depend on autocast. The caller passes images in the precision in which they are kept, and
  parameters in any precision. The operator computes sums in float32, returns images in the precision of the images,
  and returns the gradient of a parameter in the precision of the parameter.
- Gradients of parameters are partial sums in a fixed order, without atomic additions, so that a step can be repeated
  bit for bit.
"""
