"""Hydra configuration groups, installed as `edgegen.configs`."""
