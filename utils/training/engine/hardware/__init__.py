"""Capabilities and limits of the machine: number formats, fast kernels, memory, energy, recovery from out-of-memory errors.

Each module stands alone and imports nothing else of the engine.
"""
