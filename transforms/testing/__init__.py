"""Toy stages and tasks for tests of the runner; importable, because worker processes import what they compute."""
