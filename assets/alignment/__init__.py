"""The stages that make a model that answers out of one that continues: InstructGPT's three steps, and what is measured of them."""
