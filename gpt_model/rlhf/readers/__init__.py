"""From the rows that people publish to dialogues, rankings and prompts."""
