"""Zero-shot evaluation by EleutherAI's lm_eval: our model behind its LM class, and suites of task
YAML on local data.
"""
