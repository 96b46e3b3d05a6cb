"""Attention kernels for every way of attending and of storing KV that a plan can name.

Tensors only: this package never imports lcprof and holds no cost formula.
"""
