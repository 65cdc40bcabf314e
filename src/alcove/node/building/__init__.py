"""Builds that teams ask for: steps run in sandboxes, layers kept of them, roots made of layers."""
