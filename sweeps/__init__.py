"""Scheduling of sweeps: the sweep file, the plan, and the jobs on Ray Tune. The only package that imports ray."""
