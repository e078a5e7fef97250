"""The experiments of the papers as libraries: what is measured and how. Which runs and when is the
pipeline's.
"""
