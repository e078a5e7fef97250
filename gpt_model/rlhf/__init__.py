"""InstructGPT's three steps (Ouyang et al. 2022): demonstrations, reward model, PPO-ptx; and DPO
beside the last. No Dagster, no MLflow.
"""
