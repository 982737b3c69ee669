"""The families: each reads a checkpoint's config, composes the parts and says which tensor belongs where.

A family is a module with `ARCHITECTURES`, `build(config, architecture, device) -> nn.Module` and
`weights(config, architecture) -> WeightMap`.
"""
