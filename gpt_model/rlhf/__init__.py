"""InstructGPT's three steps (Ouyang et al. 2022) and DPO. No Dagster, no MLflow.

sft.py, sft_selection.py        demonstrations, and the epoch that the reward model prefers
reward_model.py                 the reward model and its loss over pairs
rollouts.py, advantages.py, ppo.py   PPO-ptx; the KL penalty is in advantages.py
dpo.py                          direct preference optimisation
model_comparison.py             win rates, drift and KL of the models side by side
"""
