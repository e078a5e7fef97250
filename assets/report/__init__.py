"""What a person sees: tables, plots and pages. One view a stage."""
