"""The documentation: what its pages say to type, and what they say comes of it."""
