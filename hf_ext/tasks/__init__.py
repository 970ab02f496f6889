"""What a recipe is made of, task by task."""
