"""Whole vLLM engines on one GPU, device to device: what is right, and how fast. See docs/gpu-check.md.

    python -m benchmarks.gpu_check [STAGE ...] [--kinds KIND,...] [--device cuda|cpu] [--out DIR] [--budget-s 350]
                                   [--again] [--eager]

Stages run in the order of `stages.STAGES` and `stages.KIND_STAGES`; those whose results are in DIR already are left
out, so that a run that was cut short goes on where it stopped. Stages that need the same engines, one after another,
share them.
"""
