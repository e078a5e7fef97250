"""What a person writes: recipes and profiles, read strictly."""
