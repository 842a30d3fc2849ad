"""Pretrained weights and tokenizers, in and out of the directories that Hugging Face's tools use.

A family of models is one table from our parameters to their tensors, used in both directions, and
one translation of its config.json: see `family`. `convert` is the command.
"""
