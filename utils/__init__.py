"""Plumbing that every experiment shares; nothing in here knows what a GAN is."""
