"""What `make bench` runs: each module prints JSON lines of ratios that were measured side by side in one run."""
