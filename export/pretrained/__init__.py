"""The models that come with the package, and their cards: a name in, the path of a model file out."""
