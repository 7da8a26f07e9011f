"""The included recipes, as YAML files."""
