"""Machines: one isolated computer each, made by back ends that all keep the contract of `base`."""
