"""The app: a page on which an image is opened, a question asked and the reasoning watched.

It folds over `engine.trace` events and imports no torch: whatever can stream events, a live
engine or a saved trace, drives the same view.
"""
