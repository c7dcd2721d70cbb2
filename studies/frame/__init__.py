"""What every study is made of: the registry and the style of figures."""
