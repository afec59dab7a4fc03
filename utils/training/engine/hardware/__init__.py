"""What the machine offers and where it ends: number formats, faster kernels, memory and running out of it.

Each module stands alone and imports nothing else of the engine.
"""
