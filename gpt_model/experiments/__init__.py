"""A file a figure or table of a paper: all its computing. No reading of artifacts, no drawing.

    gpt1_table5_ablations                     what pre-training, L1 and the Transformer are worth
    gpt1_figure2_left_layers_transferred      a task's score by the layers transferred
    gpt1_figure2_right_zero_shot_dynamics     what a decoder can do before any fine-tuning
    gpt1_section1_visible_context             bits by how much of the context is seen
    gpt3_figure3_1_scaling_law                loss by compute, and the prediction of a larger model
    depth                                     bits by depth of whole models, which no paper has
    gpt1_zero_shot_heuristics                 how a model answers untuned (figure 2 right)
    finetuning_variants                       one task fine-tuned in several variants and seeds

Each ends in a `document`: plain data as `document.py` has it, whose JSON is hashed.
"""
