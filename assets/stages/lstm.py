"""The LSTM that is trained as the recipe's Transformer is: its asset, and what the experiments say
that set it beside the Transformer.
"""

LSTM = "experiments/lstm"
ONE_RUN = "One pre-training run of each network: what another seed of pre-training would give is not in the intervals."
