"""The engine: one decode loop that yields events, and everything needed to run it.

Importing this package imports no torch: a saved trace can be opened, shown and replayed
without it. `engine.engine.Engine` is the part that needs torch.
"""
