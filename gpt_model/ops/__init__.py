"""Kernels: the arithmetic that the networks share. Imports nothing of ours."""
